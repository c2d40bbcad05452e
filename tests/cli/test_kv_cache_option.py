"""Where commands read passages from: by default the cache on disk, shared by all processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import tiny_lm, tiny_tokenizer
from imprag.cli import main
from imprag.io.file_cache import kv_files
from imprag.model import ImpRAGConfig, ImpRAGModel, save_pretrained

CONFIG: dict[str, Any] = {"b": 1, "t": 3, "k": 3, "max_passage_tokens": 16, "trained": True}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models, which encode passages in different ways, and the first's index."""
    path = tmp_path_factory.mktemp("home")
    for name, settings in (("model", {}), ("segmented", {"passage_encoding": "segmented"})):
        config = ImpRAGConfig(base_model="tiny", **{**CONFIG, **settings})
        save_pretrained(ImpRAGModel(tiny_lm(), config), tiny_tokenizer(), path / name)
    texts = [" ".join(f"w{(5 * n + i) % 94}" for i in range(6)) for n in range(9)]
    (path / "corpus.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in texts))
    made = ("--out", str(path / "index"), "--model", str(path / "model"), "--dtype", "float32")
    assert main(["index", str(path / "corpus.jsonl"), *made]) == 0
    return path


@pytest.fixture(autouse=True)
def caching(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPRAG_CACHE", str(tmp_path))
    monkeypatch.setenv("IMPRAG_KV_CACHE_GB", "1")
    monkeypatch.chdir(home)


ASK = ["ask", "w10 w12 w7", "--index", "index", "--dtype", "float32", "--device", "cpu", "--json"]


def asked(capsys: pytest.CaptureFixture[str], *options: str, model: str = "model") -> Any:
    capsys.readouterr()
    assert main([*ASK, "--max-new-tokens", "6", "--model", model, *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_second_question_encodes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Two processes ask first, at the same time, and write what they encode before they end."""
    command = [sys.executable, "-m", "imprag", *ASK, "--max-new-tokens", "6", "--model", "model"]
    started = [
        subprocess.Popen(
            command,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    first = []
    for process in started:
        out, err = process.communicate()
        assert (process.returncode, err) == (0, "")
        first.append(json.loads(out))
    assert kv_files().usage()[0] == 3
    second = asked(capsys)
    assert second["kv_cache"] == {"hits": 3, "misses": 0}
    assert [one["answer"] for one in first] == [second["answer"]] * 2
    assert {"hits": 0, "misses": 3} in [one["kv_cache"] for one in first]

    assert main(["info", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["kv_cache"]
    count, size = kv_files().usage()
    assert told == {
        "path": str(kv_files().folder),
        "passages": count,
        "bytes": size,
        "max_bytes": 10**9,
    }
    assert main(["kv", "clear"]) == 0
    assert "deleted 3 passages, " in capsys.readouterr().err
    assert kv_files().usage() == (0, 0)


@pytest.mark.parametrize("off", ["option", "environment", "no passages", "segmented"])
def test_nothing_is_kept(
    off: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"option": ("--kv-cache", "none"), "no passages": ("--k", "0")}.get(off, ())
    if off == "environment":
        monkeypatch.setenv("IMPRAG_KV_CACHE_GB", "0")
    model = "segmented" if off == "segmented" else "model"
    for _ in range(2):
        answer = asked(capsys, *options, model=model)
        assert answer["kv_cache"] == {"hits": 0, "misses": 0 if off == "no passages" else 3}
    assert not kv_files().folder.exists()


def test_a_wrong_size_is_refused(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPRAG_KV_CACHE_GB", "1GB")
    for command in (["info"], ["kv", "clear"], [*ASK, "--model", "model"]):
        assert main(command) == 2
        assert "IMPRAG_KV_CACHE_GB is '1GB'; set it to" in capsys.readouterr().err


def test_a_cache_that_cannot_be_cleared(tmp_path: Path, capsys, monkeypatch) -> None:
    kv_files().write([("one", b"content")])

    def refuse(*arguments: object, **settings: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    assert main(["kv", "clear"]) == 2
    assert f"cannot clear {tmp_path / 'kv'}: " in capsys.readouterr().err
