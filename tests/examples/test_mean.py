"""Means of adapters."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mean import main
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from conftest import tiny_lm, tiny_tokenizer
from imprag.model import ImpRAGConfig, ImpRAGModel, load_pretrained, save_pretrained
from imprag.model.adapter import WEIGHTS
from imprag.model.peft_adapters import add_adapter

Q_PROJ = "model.layers.3.self_attn.q_proj"
NORM = "model.layers.3.input_layernorm.weight"


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """A run of an adapter of rank 4 with a norm."""
    tiny_lm().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    lm = tiny_lm()
    add_adapter(
        lm, LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj"], modules_to_save=[NORM[:-7]])
    )
    config = ImpRAGConfig(base_model=str(tmp_path / "base"), b=2, t=4)
    run = tmp_path / "first"
    save_pretrained(ImpRAGModel(lm.eval(), config), tiny_tokenizer(), run / "model")
    (run / "checkpoint-7").mkdir()
    (run / "recipe.yaml").write_text("system: imprag\n", encoding="utf-8")
    drawn = torch.Generator().manual_seed(1)
    change(run, lambda x: torch.randn(x.shape, generator=drawn))
    return run


def change(folder: Path, drawn: Callable[[Tensor], Tensor]) -> None:
    """Replace the tensors of layer 3 and above; those below stay."""
    tensors = load_file(folder / "model" / WEIGHTS)
    for name, tensor in tensors.items():
        if any(f"layers.{n}." in name for n in (3, 4, 5)):
            tensors[name] = drawn(tensor)
    save_file(tensors, folder / "model" / WEIGHTS)


def other(first: Path, kept: str, seed: int = 2) -> Path:
    """The same with other factors; those whose names contain `kept` stay."""
    folder = first.with_name("second")
    shutil.copytree(first, folder)
    drawn = torch.Generator().manual_seed(seed)
    before = load_file(folder / "model" / WEIGHTS)
    change(folder, lambda x: torch.randn(x.shape, generator=drawn))
    after = load_file(folder / "model" / WEIGHTS)
    mixed = {k: before[k] if kept in k else v for k, v in after.items()}
    save_file(mixed, folder / "model" / WEIGHTS)
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    model = folder / "model" if (folder / "model").exists() else folder
    return load_pretrained(model, dtype="float32", device="cpu")[0].lm.state_dict()


def test_the_mean_of_changes_of_one_subspace_is_exact(first: Path, tmp_path: Path) -> None:
    second = other(first, kept="lora_A")  # the sum then has the rank of one
    main([str(first), str(second), "--alpha", "0.25", "--out", str(tmp_path / "mean")])
    a, b, mean = weights(first), weights(second), weights(tmp_path / "mean")
    assert not torch.equal(a[f"{Q_PROJ}.weight"], b[f"{Q_PROJ}.weight"])
    for name, weight in mean.items():
        torch.testing.assert_close(weight, 0.75 * a[name] + 0.25 * b[name], atol=1e-5, rtol=1e-5)
    assert not torch.equal(mean[NORM], a[NORM])


def test_the_largest_directions_of_other_means_are_kept(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = other(first, kept="nothing")
    main([str(first), str(second), "--out", str(tmp_path / "mean")])
    base, a, b, mean = (weights(tmp_path / name) for name in ("base", "first", "second", "mean"))
    lost = []
    for name, weight in mean.items():
        if name.endswith("q_proj.weight") and not torch.equal(a[name], b[name]):
            whole = ((a[name] + b[name]) / 2 - base[name]).double()
            values = torch.linalg.svdvals(whole).square()
            error = (whole - (weight - base[name]).double()).square().sum()
            torch.testing.assert_close(error, values[4:].sum(), rtol=1e-3, atol=0)
            lost.append(float(values[4:].sum() / values.sum()))
    assert len(lost) == 3
    assert capsys.readouterr().out.endswith(f"cut off: {max(lost):.2g}\n")
    kept, one = (load_file(run / "model" / WEIGHTS) for run in (tmp_path / "mean", first))
    assert sorted(path.name for path in (tmp_path / "mean").iterdir()) == ["model", "recipe.yaml"]
    assert all(torch.equal(kept[name], one[name]) for name in one if "layers.1." in name)


def test_what_cannot_be_averaged_is_refused(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = other(first, kept="nothing")
    weights_file = second / "model" / WEIGHTS
    tensors = load_file(weights_file)
    save_file({k: v for k, v in tensors.items() if "layers.5." not in k}, weights_file)
    for words, message in (
        ([first, second, "--out", tmp_path / "out"], "do not change the same weights"),
        ([first, tmp_path / "base", "--out", tmp_path / "out"], "holds no adapter"),
        ([first, first, "--out", second], "exists already"),
    ):
        with pytest.raises(SystemExit):
            main([str(word) for word in words])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
