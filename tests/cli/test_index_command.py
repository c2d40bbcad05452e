"""`imprag index`: building is tested in test_cli.py, here are the changes of an index."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from conftest import tiny_lm, tiny_tokenizer
from imprag.cli import main
from imprag.index.build import predict_index
from imprag.index.folder import IndexFolder
from imprag.model import ImpRAGConfig, ImpRAGModel, save_pretrained
from imprag.pipeline import ImpRAG


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def write(path: Path, texts: dict[str, str]) -> Path:
    lines = [{"id": name, "title": "", "text": text} for name, text in texts.items()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


TEXTS = {f"p{n}": f"w{n} w{n + 1} w{3 * n}" for n in range(20)}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    config = ImpRAGConfig(base_model="tiny", b=1, t=3, k=2, max_passage_tokens=16)
    save_pretrained(ImpRAGModel(tiny_lm(), config), tiny_tokenizer(), tmp_path / "model")
    corpus = write(tmp_path / "corpus.jsonl", TEXTS)
    options = ("--out", tmp_path / "index", "--model", tmp_path / "model")
    assert run("index", corpus, *options, "--kind", "hnsw") == 0
    return tmp_path


def change(home: Path, *arguments: object) -> int:
    return run("index", *arguments, "--out", home / "index", "--model", home / "model")


def texts(home: Path) -> dict[str, str]:
    return {one.id: one.text for one in IndexFolder.open(home / "index").corpus}


def test_update_embeds_what_has_changed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    new = {"first": "w9 w8", **TEXTS, "p3": "w1 w1", "p4": "w2 w2"}
    del new["p5"]
    edited = write(home / "edited.jsonl", new)
    assert change(home, edited, "--update") == 0
    assert (
        "20 passages; 3 embedded, 17 kept; 1 added, 2 replaced, 1 removed"
        in capsys.readouterr().err
    )
    assert texts(home) == new
    assert IndexFolder.open(home / "index").index.manifest.kind == "hnsw"
    assert change(home, edited, "--update") == 0
    assert (
        "20 passages; 0 embedded, 20 kept; 0 added, 0 replaced, 0 removed"
        in capsys.readouterr().err
    )
    assert change(home, edited, "--update", "--kind", "flat", "--compact") == 0
    assert IndexFolder.open(home / "index").index.manifest.kind == "flat"
    assert len(list((home / "index" / "states").iterdir())) == 1
    assert run("info", home / "index", "--verify") == 0
    assert "kind: index" in capsys.readouterr().out
    ask = ("ask", "w1", "--model", home / "model", "--index", home / "index")
    assert run(*ask, "--retrieval", "hybrid", "--max-new-tokens", 1) == 0


def test_add_and_remove(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    more = write(home / "more.jsonl", {"p1": "w5 w5", "x": "w6 w6"})
    assert change(home, "--add", more, "--remove", "p17", "p18") == 0
    assert (
        "19 passages; 2 embedded, 17 kept; 1 added, 1 replaced, 2 removed"
        in capsys.readouterr().err
    )
    kept = {name: text for name, text in TEXTS.items() if name not in ("p17", "p18")}
    assert texts(home) == {**kept, "p1": "w5 w5", "x": "w6 w6"}
    assert change(home, "--compact") == 0
    assert texts(home)["x"] == "w6 w6"
    assert run("info", home / "index", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["state"], facts["changes"]) == (1, {"added": 1, "replaced": 1, "removed": 2})
    assert facts["corpus"]["source"] == f"{home / 'corpus.jsonl'}; {more}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "say which corpus"),
        (["c.jsonl", "--update", "--overwrite"], "choose one"),
        (["c.jsonl", "--add", "c.jsonl"], "give the passages to add after --add"),
        (["--remove", "p1", "--overwrite"], "--overwrite has no effect"),
        (["--add", "c.jsonl", "--kind", "flat"], "--kind has no effect"),
        (["--compact", "--update"], "--update has no effect"),
        (["--remove", "p1", "--ray", "local"], "--ray has no effect without texts to embed"),
        (["c.jsonl", "--update", "--workers", "3"], "--workers has no effect without --ray"),
        (["--remove", "nobody"], "no passage has the id 'nobody'"),
        (["--add", "nothing.jsonl"], "no corpus"),
    ],
)
def test_bad_changes(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    write(home / "c.jsonl", {"c": "w1"})
    paths = [str(home / one) if one.endswith("l") and "." in one else one for one in arguments]
    assert change(home, *paths) == 2
    assert words in capsys.readouterr().err
    assert texts(home) == TEXTS


def test_an_index_to_change_must_be_there(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["corpus.jsonl", "--update"], ["--remove", "p1"], ["--compact"]):
        paths = [str(home / one) if one.endswith("jsonl") else one for one in arguments]
        assert run("index", *paths, "--out", home / "none", "--model", home / "model") == 2
        assert "is no index folder" in capsys.readouterr().err
        assert not (home / "none").exists()


def test_a_dry_run_tells_what_an_index_takes(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, out = home / "corpus.jsonl", ("--out", home / "none", "--model", home / "model")
    capsys.readouterr()
    assert run("index", corpus, *out, "--dry-run") == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("20 passages, ")
    kinds = [line.split("|")[1].strip() for line in printed.out.splitlines() if line[:1] == "|"][2:]
    assert kinds == ["flat", "hnsw", "milvus", "milvus-ivf", "pgvector"]
    assert "note: not ivfpq: an ivfpq index needs at least 10,240 passages" in printed.err
    assert run("index", corpus, *out, "--dry-run", "--kind", "ivfpq") == 2
    assert "needs at least 10,240" in capsys.readouterr().err
    assert run("index", corpus, *out, "--dry-run", "--update") == 2
    assert "--update has no effect with --dry-run" in capsys.readouterr().err
    assert not (home / "none").exists()
    predicted = predict_index(IndexFolder.open(home / "index").corpus, dimension=32, kind="flat")
    assert run("index", corpus, *out) == 0
    folder = home / "none" / "index"
    made = sum(file.stat().st_size for file in folder.iterdir() if file.suffix != ".json")
    assert made == pytest.approx(predicted.disk, abs=1000)
    capsys.readouterr()
    assert run("index", corpus, *out, "--dry-run", "--kind", "flat", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["kinds"] == [asdict(predicted)]
    assert plan["hours"] == pytest.approx(20 / plan["passages_per_second"] / 3600)
    assert run("index", corpus, *out, "--json") == 2
    assert "--json has no effect without --dry-run" in capsys.readouterr().err


def test_an_unknown_kind_is_refused_before_pytorch_is_loaded() -> None:
    script = (
        "import sys; from imprag.cli import main;"
        "print(main(['index', 'c.jsonl', '--out', 'o', '--kind', 'no']), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["2", "False"], done.stderr
    assert "unknown index kind 'no'" in done.stderr


def test_a_pipeline_and_its_kv_cache_follow_the_index(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stored states of an edited passage are never read."""
    given = ("--model", home / "model", "--index", home / "index")
    assert run("kv", "build", *given, "--out", home / "kv", "--codec", "fp32") == 0
    rag = ImpRAG.from_pretrained(home / "model", home / "index", home / "kv", dtype="float32")
    prompt = "w3 w6 w4"
    assert change(home, "--add", write(home / "e.jsonl", {"p3": "w3 w6 w4 w3 w6 w4"})) == 0
    capsys.readouterr()
    live = ImpRAG.from_pretrained(home / "model", home / "index", dtype="float32")
    expected = live.ask(prompt, k=20, max_new_tokens=8)
    stored = rag.ask(prompt, k=20, max_new_tokens=8)
    assert stored.text == expected.text
    assert "w3 w6 w4 w3 w6 w4" in [one.passage.text for one in stored.passages]
    assert (rag.kv_cache.hits, rag.kv_cache.misses) == (19, 1)
    again = ImpRAG.from_pretrained(home / "model", home / "index", home / "kv", dtype="float32")
    assert again.ask(prompt, k=20, max_new_tokens=8).text == expected.text
    assert "Add them with: imprag kv build" in capsys.readouterr().err
    assert run("kv", "build", *given, "--out", home / "kv", "--update") == 0
    whole = ImpRAG.from_pretrained(home / "model", home / "index", home / "kv", dtype="float32")
    assert whole.ask(prompt, k=20, max_new_tokens=8).text == expected.text
    assert (whole.kv_cache.hits, whole.kv_cache.misses) == (20, 0)
    assert "note:" not in capsys.readouterr().err
    for option in (("--codec", "int8"), ("--overwrite",)):
        assert run("kv", "build", *given, "--out", home / "kv", "--update", *option) == 2
        assert "no effect with --update" in capsys.readouterr().err


def test_the_built_in_index_is_not_changed(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    index = IndexFolder.open(home / "index")
    with pytest.raises(Exception, match="opened without its model"):
        index.remove(["p1"])
    rag = ImpRAG.from_pretrained(home / "model", home / "index")
    rag.index.remove(["p1"])
    assert "p1" not in texts(home)
    assert len(rag.index.corpus) == len(TEXTS) - 1
