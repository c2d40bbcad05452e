"""Adapters of every make: merged as peft merges them, changed and made small, or refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from conftest import tiny_lm, tiny_tokenizer
from imprag.errors import ImpRAGError
from imprag.model import ImpRAGConfig, load_pretrained
from imprag.model.adapter import PREFIX, SETTINGS, WEIGHTS, Adapter
from imprag.model.compact import write_changed_adapter, write_compact_adapter
from imprag.model.peft_adapters import add_adapter, save_adapter

EXACT = {"dtype": "float32", "device": "cpu"}
MODULE = "model.layers.1.self_attn.q_proj"
MERGED: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "dora with rslora": {"use_dora": True, "use_rslora": True},
    "expression": {"target_modules": r".*\.(q|up)_proj"},
    "one module by its name": {"target_modules": [MODULE]},
    "all linear": {"target_modules": "all-linear"},
    "ranks and alphas by patterns": {
        "rank_pattern": {r"layers\.[12]\.self_attn\.q_proj": 2, "q_proj": 6},
        "alpha_pattern": {r"layers\.1\..*": 32, "up_proj": 1},
    },
    "some layers": {"layers_to_transform": [1, 3]},
    "one layer by a pattern": {"layers_to_transform": 1, "layers_pattern": "layers"},
    "left out": {"target_modules": "all-linear", "exclude_modules": ["k_proj", "lm_head"]},
    "left out by an expression": {"exclude_modules": r".*\.[024]\..*"},
    "norms saved": {"modules_to_save": ["input_layernorm", "model.norm"]},
    "head saved": {"modules_to_save": ["lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "embedding with dora": {"target_modules": ["embed_tokens"], "use_dora": True},
    "transposed by mistake": {"fan_in_fan_out": True},
    "gaussian": {"init_lora_weights": "gaussian"},
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny_lm().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def write_adapter(base: Path, folder: Path, family: str = "llama", **settings: Any) -> Path:
    """An adapter as peft writes it, all of whose weights are random, with ``imprag.json``."""
    chosen = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "up_proj"], **settings}
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_pretrained(base)
    add_adapter(lm, LoraConfig(**chosen))
    for name, parameter in lm.named_parameters():
        if "lora_magnitude" in name or "modules_to_save" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
        elif "lora_" in name or (settings.get("bias") and name.endswith("bias")):
            torch.nn.init.normal_(parameter, std=0.1)
    folder.mkdir()
    save_adapter(lm, folder)
    ImpRAGConfig(base_model=str(base), b=1, t=4).save(folder)
    return folder


def by_peft(base: Path, folder: Path) -> dict[str, Tensor]:
    lm = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return dict(PeftModel.from_pretrained(lm, folder).merge_and_unload().state_dict())


def loaded(folder: Path) -> dict[str, Tensor]:
    return dict(load_pretrained(folder, **EXACT)[0].lm.state_dict())


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=atol, rtol=0, msg=name)


@pytest.mark.parametrize("kind", MERGED)
def test_an_adapter_is_merged_as_peft_merges_it(kind: str, base: Path, tmp_path: Path) -> None:
    folder = write_adapter(base, tmp_path / "adapter", **MERGED[kind])
    expected = by_peft(base, folder)
    assert_same(loaded(folder), expected)
    before = load_file(base / "model.safetensors")
    assert any((expected[name] - before[name]).abs().max() > 0.01 for name in before)


@pytest.mark.parametrize("kind", MERGED)
def test_a_change_is_added_to_an_adapter_of_any_make(kind: str, base: Path, tmp_path: Path) -> None:
    folder = write_adapter(base, tmp_path / "adapter", **MERGED[kind])
    before = by_peft(base, folder)
    change = 0.01 * torch.randn(before[f"{MODULE}.weight"].shape)
    if "dora" in kind:
        with pytest.raises(ImpRAGError, match="is DoRA"):
            write_changed_adapter(folder, tmp_path / "changed", MODULE, change)
        return
    write_changed_adapter(folder, tmp_path / "changed", MODULE, change)
    before[f"{MODULE}.weight"] += change
    assert_same(by_peft(base, tmp_path / "changed"), before)
    assert_same(loaded(tmp_path / "changed"), before)


@pytest.mark.parametrize("kind", MERGED)
def test_a_compact_adapter_of_any_make_is_nearly_the_same(
    kind: str, base: Path, tmp_path: Path
) -> None:
    folder = write_adapter(base, tmp_path / "adapter", **MERGED[kind])
    write_compact_adapter(folder, tmp_path / "compact")
    plain, large = load_file(base / "model.safetensors"), by_peft(base, folder)
    small = by_peft(base, tmp_path / "compact")
    assert_same(loaded(tmp_path / "compact"), small)
    for name, weight in large.items():
        error, change = (small[name] - weight).norm(), (weight - plain[name]).norm()
        assert error <= 0.06 * change + 0.005 * weight.norm() * (change > 0), name


def test_biases_are_merged(tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny_lm("qwen2").save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    for bias in ("lora_only", "all"):
        folder = write_adapter(base, tmp_path / bias, bias=bias)
        assert_same(loaded(folder), by_peft(base, folder))
    folder = write_adapter(base, tmp_path / "own", target_modules=["q_proj"], lora_bias=True)
    assert_same(loaded(folder), by_peft(base, folder))
    with pytest.raises(ImpRAGError, match="lora_bias"):
        write_compact_adapter(folder, tmp_path / "compact")
    tiny_lm().save_pretrained(base)
    with pytest.raises(ImpRAGError, match=r"adds a bias to model\.layers\.0\..*, which has none"):
        load_pretrained(folder, **EXACT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "is IA3, not LORA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: pissa"),
        ({"use_qalora": True}, "use_qalora"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"target_parameters": ["mlp.experts"]}, "target_parameters"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
        ({"some_method_to_come": {"x": 1}}, "some_method_to_come"),
        ({"target_modules": ["q_proj", "up_proj", "k_proj"]}, r"lacks .*k_proj\.lora_A"),
        ({"target_modules": ["q_proj"]}, r"without a place in the model: model.*up_proj"),
        ({"modules_to_save": ["norm"]}, r"lacks base_model\.model\.model\.norm\.weight"),
        ({"use_dora": True}, "lacks .*lora_magnitude_vector"),
        ({"lora_alpha": None}, "lacks lora_alpha"),
        ({"lora_alpha": "8"}, "lora_alpha cannot be '8'"),
        ({"alpha_pattern": ["q_proj"]}, "alpha_pattern cannot be"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern cannot be"),
        ({"target_modules": 3}, "target_modules cannot be 3"),
        ({"target_modules": "*.q_proj"}, r"target_modules cannot be '\*\.q_proj'"),
        ({"layers_to_transform": "1"}, "layers_to_transform cannot be"),
        ({"modules_to_save": "norm"}, "modules_to_save cannot be"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_refused_by_what_it_has(
    change: dict[str, Any], message: str, base: Path, tmp_path: Path
) -> None:
    folder = write_adapter(base, tmp_path / "adapter")
    settings = json.loads((folder / SETTINGS).read_text()) | change
    (folder / SETTINGS).write_text(json.dumps(settings))
    with pytest.raises(ImpRAGError, match=message):
        load_pretrained(folder, **EXACT)


def test_an_adapter_whose_weights_do_not_fit_is_refused_by_their_names(
    base: Path, tmp_path: Path
) -> None:
    folder = write_adapter(base, tmp_path / "adapter")
    whole = load_file(folder / WEIGHTS)
    first = f"{PREFIX}model.layers.0.self_attn.q_proj.lora_A.weight"

    def refused(weights: dict[str, Tensor], message: str) -> None:
        save_file(weights, folder / WEIGHTS)
        with pytest.raises(ImpRAGError, match=message):
            load_pretrained(folder, **EXACT)

    refused({n: x for n, x in whole.items() if n != first}, f"lacks {first}")
    refused({n: x for n, x in whole.items() if ".layers.0." not in n}, "lacks .* and 1 more")
    refused({**whole, f"{PREFIX}model.layers.9.q": torch.ones(1)}, r"a place .*model\.layers\.9\.q")
    refused({**whole, first: torch.ones(4, 47)}, r"q_proj\.weight have the shape \(96, 47\), not")
    refused({**whole, first: torch.ones(3, 48)}, r"q_proj\.weight have the shape")
    refused({**whole, first: whole[first].to(torch.int8)}, f"{first} holds integers")
    refused({**whole, first: whole[first] * float("nan")}, "not finite")
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:5000])
    with pytest.raises(ImpRAGError, match=r"adapter_model\.safetensors is no safetensors file"):
        load_pretrained(folder, **EXACT)
    (folder / WEIGHTS).unlink()
    with pytest.raises(ImpRAGError, match=r"cannot read .*adapter_model\.safetensors: No such"):
        load_pretrained(folder, **EXACT)


def test_an_adapter_that_unties_weights_is_refused(tmp_path: Path) -> None:
    base = tmp_path / "base"
    lm = tiny_lm("gemma2")
    assert lm.config.tie_word_embeddings
    lm.save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    folder = write_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "embed_tokens"])
    assert_same(loaded(folder), by_peft(base, folder))
    folder = write_adapter(base, tmp_path / "saved", modules_to_save=["lm_head"])
    with pytest.raises(ImpRAGError, match="which are one weight"):
        load_pretrained(folder, **EXACT)


def test_a_bare_adapter_is_a_model(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(base, tmp_path / "adapter")
    (folder / "imprag.json").unlink()
    model, tokenizer = load_pretrained(folder, **EXACT, k=3)
    assert (model.config.b, model.config.t, model.config.k) == (1, 4, 3)
    assert model.config.base_model == str(base)
    assert tokenizer("w1").input_ids == [4]
    assert_same(dict(model.lm.state_dict()), by_peft(base, folder))
    settings = json.loads((folder / SETTINGS).read_text())
    (folder / SETTINGS).write_text(json.dumps(settings | {"base_model_name_or_path": None}))
    with pytest.raises(ImpRAGError, match="names no base model"):
        load_pretrained(folder, **EXACT)


def test_merging_does_not_depend_on_the_order_of_sums(base: Path, tmp_path: Path) -> None:
    """Rounded to a fixed point, the factors' products and all their sums are exact."""
    folder = write_adapter(base, tmp_path / "adapter", r=16)
    adapter = Adapter(folder)
    weight = load_file(base / "model.safetensors")[f"{MODULE}.weight"]
    expected = adapter.merged(f"{MODULE}.weight", weight)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    for part, axis in (("A", 0), ("B", 1)):
        name = f"{PREFIX}{MODULE}.lora_{part}.weight"
        adapter.tensors[name] = adapter.tensors[name].index_select(axis, order).contiguous()
    shutil.copytree(folder, tmp_path / "other")
    save_file(adapter.tensors, tmp_path / "other" / WEIGHTS)
    found = Adapter(tmp_path / "other").merged(f"{MODULE}.weight", weight)
    assert torch.equal(found, expected)
