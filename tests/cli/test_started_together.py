"""Commands that start at the same time, and caches that hold what was converted or read once."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from conftest import tiny_lm, tiny_tokenizer
from imprag.cli import main
from imprag.corpus import load_corpus
from imprag.errors import ImpRAGError
from imprag.io.locking import make_once, only_builder
from imprag.model import ImpRAGConfig, ImpRAGModel, save_pretrained


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked")
def test_three_processes_at_once_on_an_empty_cache_all_succeed(tmp_path: Path) -> None:
    config = ImpRAGConfig(base_model="tiny", b=1, t=3, k=2, max_passage_tokens=16)
    save_pretrained(ImpRAGModel(tiny_lm(), config), tiny_tokenizer(), tmp_path / "model")
    lines = [json.dumps({"id": f"p{n}", "text": f"w{n % 94} w{n % 7}"}) for n in range(300)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name("started_together.py"), tmp_path],
        env=os.environ | {"IMPRAG_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    for command, processes in json.loads(run.stdout).items():
        for code, _, errors in processes:
            assert code == 0, (command, errors)
            assert "Traceback" not in errors
    answers = [json.loads(out)["answer"] for _, out, _ in json.loads(run.stdout)["ask"]]
    assert len(set(answers)) == 1
    assert not [path for path in tmp_path.rglob("*") if ".building" in path.name]


def test_a_second_builder_waits_and_says_so(tmp_path: Path, capsys) -> None:
    made = []

    def make() -> None:
        time.sleep(0.3)
        made.append(1)
        (tmp_path / "folder").mkdir()

    arguments = (tmp_path / "folder", make)
    threads = [threading.Thread(target=make_once, args=arguments) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]
    assert capsys.readouterr().err == (
        f"another process is building {tmp_path / 'folder'}; waiting for it\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_killed_builder_leaves_no_stale_lock(tmp_path: Path, capsys) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from imprag.io.locking import only_builder
with only_builder(Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    out = tmp_path / "folder"
    assert subprocess.run([sys.executable, "-c", script, out], check=False).returncode < 0
    assert (tmp_path / "folder.building.lock").exists()
    with only_builder(out) as alone:
        assert alone
    assert capsys.readouterr().err == ""
    assert not list(tmp_path.iterdir())


def test_a_file_of_the_same_size_and_time_is_read_again(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("IMPRAG_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "corpus.jsonl"
    folder = tmp_path / "notes"
    folder.mkdir()
    for text in ("one text", "two text"):
        file.write_text(json.dumps({"text": text}))
        (folder / "note.txt").write_text(text)
        for path in (file, folder / "note.txt"):
            os.utime(path, ns=(10**18, 10**18))
        assert load_corpus(file)[0].text == load_corpus(folder)[0].text == text
        assert load_corpus([file, folder])[0].text == text


def test_a_renamed_note_is_another_corpus(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("IMPRAG_CACHE", str(tmp_path / "cache"))
    (tmp_path / "notes").mkdir()
    note = tmp_path / "notes" / "one.txt"
    note.write_text("a text")
    before = load_corpus(tmp_path / "notes")
    note.rename(note.with_name("two.txt"))
    assert load_corpus(tmp_path / "notes").fingerprint != before.fingerprint


def test_a_long_name_is_no_full_disk(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("IMPRAG_CACHE", str(tmp_path / "cache"))
    file = tmp_path / ("文" * 78 + ".txt")
    file.write_text("a text")
    assert load_corpus(file)[0].text == "a text"
    with (
        pytest.raises(ImpRAGError, match="name too long; choose a shorter name"),
        only_builder(tmp_path / ("x" * 250)),
    ):
        pass


def test_a_tilde_in_the_cache_variable_is_the_home_directory(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("IMPRAG_CACHE", "~/c")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"text": "a text"}))
    assert load_corpus("~/corpus.jsonl").path.is_relative_to(tmp_path / "c")
    assert not (tmp_path / "~").exists()


def test_a_tilde_in_options_is_the_home_directory(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("IMPRAG_CACHE", "~/cache")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    config = ImpRAGConfig(base_model="tiny", b=1, t=3, k=1, max_passage_tokens=16)
    save_pretrained(ImpRAGModel(tiny_lm(), config), tiny_tokenizer(), tmp_path / "model")
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "w1 w2"}))
    assert main(["index", "~/c.jsonl", "--model=~/model", "--out=~/index"]) == 0
    assert (tmp_path / "index" / "index").is_dir()
    capsys.readouterr()
    options = ["--model", "~/model", "--index", "~/index", "--json"]
    assert main(["search", "~/w1", *options]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "~/w1"
    memory = ["kv", "build", "--model", "~/model", "--index", "~/index", "--out", "~/memory"]
    assert main(memory) == 0
    assert not list((tmp_path / "work").iterdir())
