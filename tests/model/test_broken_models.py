"""Model folders that lack something or cannot be read: one line that names it, exit status 2."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import tiny_lm, tiny_tokenizer
from imprag.cli import main
from imprag.errors import ImpRAGError
from imprag.io.files import read_json, write_json
from imprag.model import load_pretrained
from imprag.model.base import load_base_model
from imprag.training.trainer import check_checkpoint

WEIGHTS = "model.safetensors"
FIRST = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tiny_lm().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def change_config(folder: Path, **values: Any) -> None:
    write_json(folder / "config.json", read_json(folder / "config.json") | values)


def refused(folder: Path, message: str) -> None:
    """By the library and by the command line, in one line."""
    for load in (load_base_model, load_pretrained):
        with pytest.raises(ImpRAGError, match=message) as raised:
            load(folder, "float32", "cpu")
        assert "\n" not in str(raised.value)


def test_missing_misnamed_and_other_weights_are_refused_by_their_names(model: Path) -> None:
    original = (model / WEIGHTS).read_bytes()

    def missing(weights: dict[str, torch.Tensor]) -> None:
        del weights[FIRST]

    def misnamed(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.0.mlp.up.weight"] = weights.pop(FIRST)

    def many(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if ".layers.0." in name]:
            del weights[name]

    def other_shape(weights: dict[str, torch.Tensor]) -> None:
        weights[FIRST] = torch.zeros(3, 48)

    def quantised(weights: dict[str, torch.Tensor]) -> None:
        weights[FIRST] = (weights[FIRST] * 127).to(torch.int8)

    def harmless(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)

    for change, message in (
        (missing, rf"lack the weights {FIRST}\."),
        (misnamed, rf"lack the weights {FIRST}; .*a place in the model: .*mlp\.up\.weight"),
        (many, r"lack the weights .* and 6 more"),
        (quantised, rf"holds {FIRST} as I8, but config\.json names no quantization_config"),
        (other_shape, rf"{FIRST} is \(3, 48\) there, \(64, 48\) by its configuration"),
    ):
        change_weights(model, change)
        refused(model, message)
        (model / WEIGHTS).write_bytes(original)
    change_weights(model, harmless)
    load_base_model(model, "float32", "cpu")
    change_config(model, num_hidden_layers=4)
    refused(model, r"without a place in the model: model\.layers\.4")


def test_tied_weights_may_be_missing(tmp_path: Path) -> None:
    lm = tiny_lm("gemma2")
    lm.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / WEIGHTS)
    loaded, _ = load_base_model(tmp_path, "float32", "cpu")
    assert torch.equal(loaded.lm_head.weight, lm.lm_head.weight)


def test_a_missing_or_damaged_shard_is_refused_by_its_name(tmp_path: Path) -> None:
    tiny_lm().save_pretrained(tmp_path, max_shard_size="50KB")
    tiny_tokenizer().save_pretrained(tmp_path)
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:-100])
    refused(tmp_path, rf"{shard.name} is no safetensors file, or was cut")
    shard.unlink()
    refused(tmp_path, rf"cannot read .*{shard.name}: No such file")
    shard.write_bytes(content)
    index = tmp_path / "model.safetensors.index.json"
    places = read_json(index)
    places["weight_map"].pop(FIRST)
    write_json(index, places)
    # transformers reads whole files, so that a name that the index lacks is found all the same
    assert load_base_model(tmp_path, "float32", "cpu").lm is not None
    for damaged in ("{}", '{"weight_map": {"a": 3, "b": "c"}}'):
        index.write_text(damaged)
        refused(tmp_path, "has no weight_map")


def replace(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


def cut(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, 20_000)


def directory(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


def pickled(folder: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(folder / "run"),)

    (folder / WEIGHTS).unlink()
    torch.save({"x": Evil()}, folder / "pytorch_model.bin")


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: change_config(folder, **values)


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{0:064d}\nsize 538090408\n"
BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "pointer": (
        replace(WEIGHTS, POINTER),
        r"model\.safetensors is a Git LFS pointer.*git lfs pull",
    ),
    "tokenizer pointer": (replace("tokenizer.json", POINTER), r"tokenizer\.json is a Git LFS"),
    "cut": (cut, r"model\.safetensors is no safetensors file, or was cut"),
    "directory": (directory, r"cannot read .*model\.safetensors: Is a directory"),
    "pickled": (pickled, "cannot load a causal language model from .*Weights only load failed"),
    "no weights": (without(WEIGHTS), "no file named model.safetensors"),
    "no configuration": (without("config.json"), r"has no config\.json"),
    "broken configuration": (replace("config.json", "{"), r"config\.json is not valid JSON"),
    "list for configuration": (replace("config.json", "[]"), "cannot load .* from"),
    "unknown type": (config(model_type="nonsense"), "model type `nonsense`"),
    "text for a number": (config(hidden_size="x"), "hidden_size"),
    "no heads": (config(num_attention_heads=0), "ZeroDivisionError"),
    "no tokenizer": (without("tokenizer.json"), "cannot load .* from"),
    "other JSON for a tokenizer": (replace("tokenizer.json", '{"a": 1}'), "KeyError"),
    "broken tokenizer": (replace("tokenizer.json", "{"), "cannot load .* from"),
    "gptq": (
        config(quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128}),
        "needs a package that is not installed: .*pip install",
    ),
    "awq": (
        config(quantization_config={"quant_method": "awq", "bits": 4}),
        "needs a package that is not installed: .*pip install",
    ),
    "bitsandbytes": (
        config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "needs a package that is not installed: .*pip install",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_model_that_cannot_be_read_is_refused_in_one_line(kind: str, model: Path) -> None:
    damage, message = BROKEN[kind]
    damage(model)
    refused(model, message)
    assert not (model / "run").exists()


def test_the_command_line_names_a_broken_model(
    model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cut(model)
    (tmp_path / "c.jsonl").write_text('{"text": "one"}\n')
    index = ["index", str(tmp_path / "c.jsonl"), "--out", str(tmp_path / "index")]
    for command in (["ask", "w1"], ["search", "w1"], index):
        assert main([*command, "--model", str(model)]) == 2
        error = capsys.readouterr().err
        assert "model.safetensors is no safetensors file" in error
        assert "Traceback" not in error


def test_a_file_without_permission_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    original = open

    def denied(path: Any, *args: Any, **named: Any) -> Any:
        if str(path).endswith(WEIGHTS):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, *args, **named)

    monkeypatch.setattr(builtins, "open", denied)
    refused(model, r"cannot read .*model\.safetensors: Permission denied")


def test_a_device_that_is_not_there_is_refused(model: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ImpRAGError, match="cannot load .* from"):
        load_base_model(model, "float32", "cuda")


def test_a_tokenizer_beyond_the_embedding_is_refused(model: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<x{number}>" for number in range(9)])
    tokenizer.save_pretrained(model)
    refused(model, "has 106 tokens, but the model embeds 97")


def write_gguf(
    path: Path, left_out: str = "", more: tuple[str, ...] = (), scaling: bool = False
) -> None:
    """A small Llama in GGUF, with random weights, and with more tensors of eight numbers."""
    writer = gguf.GGUFWriter(str(path), "llama")
    for name, value in (
        ("block_count", 2), ("context_length", 64), ("embedding_length", 32),
        ("feed_forward_length", 64), ("head_count", 4), ("head_count_kv", 2),
    ):  # fmt: skip
        getattr(writer, f"add_{name}")(value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(40)
    tokens = ["<unk>", "<s>", "</s>", "t", "1", *(f"t{number}" for number in range(35))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * 40)
    writer.add_token_merges(["t 1"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if scaling:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
    draw = np.random.default_rng(0)
    shapes = {"token_embd": (40, 32), "output_norm": (32,), "output": (40, 32)}
    for layer in range(2):
        for name, shape in (
            ("attn_norm", (32,)), ("ffn_norm", (32,)), ("attn_q", (32, 32)), ("attn_k", (16, 32)),
            ("attn_v", (16, 32)), ("attn_output", (32, 32)), ("ffn_gate", (64, 32)),
            ("ffn_up", (64, 32)), ("ffn_down", (32, 64)),
        ):  # fmt: skip
            shapes[f"blk.{layer}.{name}"] = shape
    shapes |= dict.fromkeys(more, (8,))
    for name, shape in shapes.items():
        if name != left_out:
            writer.add_tensor(f"{name}.weight", draw.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("written", "left_out"),
    [
        ({"more": ("rope_freqs",)}, r"rope_freqs\.weight"),
        ({"more": ("blk.2.attn_k", "blk.0.attn_q_norm")}, r"blk\.0\.attn_q_norm\.weight, blk\.2"),
        ({"scaling": True}, r"llama\.rope\.scaling\.type"),
    ],
)
def test_a_gguf_file_of_which_something_is_not_read_is_refused(
    written: dict[str, Any], left_out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMPRAG_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "m.GGUF"
    write_gguf(path, **written)
    with pytest.raises(ImpRAGError, match=rf"does not read its {left_out}"):
        load_base_model(path, "float32", "cpu")


def test_a_gguf_file_that_is_cut_or_lacks_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMPRAG_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "m.gguf"
    write_gguf(path)
    lm, _ = load_base_model(path, "float32", "cpu")
    assert len(lm.model.layers) == 2
    # Other content of the same size and time is another file.
    content, status = path.read_bytes(), path.stat()
    path.write_bytes(content[:-4] + bytes(4))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    other, _ = load_base_model(path, "float32", "cpu")
    pairs = zip(lm.parameters(), other.parameters(), strict=True)
    assert any(not torch.equal(one, two) for one, two in pairs)
    path.write_bytes(content[:-5000])
    with pytest.raises(ImpRAGError, match=r"cannot read .*m\.gguf as a GGUF language model"):
        load_base_model(path, "float32", "cpu")
    path.write_text(POINTER)
    with pytest.raises(ImpRAGError, match="is a Git LFS pointer"):
        load_base_model(path, "float32", "cpu")
    write_gguf(path, left_out="blk.1.ffn_up")
    with pytest.raises(ImpRAGError, match=r"lack the weights model\.layers\.1\.mlp\.up_proj"):
        load_base_model(path, "float32", "cpu")


def test_a_cut_checkpoint_is_refused_by_its_name(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-3"
    shutil.copytree(model, folder)
    torch.save({"a": torch.ones(1000)}, folder / "optimizer.pt")
    check_checkpoint(folder)
    os.truncate(folder / "optimizer.pt", 2000)
    with pytest.raises(ImpRAGError, match=r"optimizer\.pt is damaged; delete .*checkpoint-3"):
        check_checkpoint(folder)
    torch.save({"a": torch.ones(1000)}, folder / "optimizer.pt")
    cut(folder)
    with pytest.raises(ImpRAGError, match=r"model\.safetensors is damaged; delete .*checkpoint-3"):
        check_checkpoint(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"b": 1}', "\xff\xfe", "[" * 100_000])
def test_damaged_settings_are_refused_in_one_line(content: str, model: Path) -> None:
    (model / "imprag.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ImpRAGError, match=r"imprag\.json") as raised:
        load_pretrained(model, "float32", "cpu")
    assert "\n" not in str(raised.value)
    (model / "imprag.json").unlink()
    (model / "imprag.json").mkdir()
    with pytest.raises(ImpRAGError, match=r"cannot read .*imprag\.json: Is a directory"):
        load_pretrained(model, "float32", "cpu")
    assert json.loads((model / "config.json").read_text())
