"""BEIR's folders and FlashRAG's files, from an index to the exports of an evaluation."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ir_measures
import pytest
from ir_measures import RR, nDCG

from conftest import tiny_lm, tiny_tokenizer
from imprag.cli import main
from imprag.corpus import load_corpus
from imprag.errors import ImpRAGError
from imprag.model import ImpRAGConfig, ImpRAGModel, save_pretrained
from imprag.tasks import load_task, read_tasks

COUNT = 30
TEXTS = {f"d{n}": " ".join(f"w{(5 * n + i) % 94}" for i in range(6)) for n in range(COUNT)}


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_beir(folder: Path) -> None:
    """A data set with graded relevance; its third query has no relevant passage."""
    corpus = [
        {"_id": id, "title": f"w{n}", "text": text} for n, (id, text) in enumerate(TEXTS.items())
    ]
    write_lines(folder / "corpus.jsonl", corpus)
    queries = [{"_id": f"q{n}", "text": f"w{5 * n} w{5 * n + 1}", "metadata": {}} for n in range(9)]
    write_lines(folder / "queries.jsonl", queries)
    (folder / "qrels").mkdir()
    lines = ["query-id\tcorpus-id\tscore"]
    for n in range(9):
        if n != 2:
            lines += [f"q{n}\td{n}\t2", f"q{n}\td{n + 1}\t1", f"q{n}\td{n + 2}\t0"]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    (folder / "qrels" / "dev.tsv").write_text("\n".join(lines[:3]) + "\n")


def write_flashrag(folder: Path) -> None:
    corpus = [
        {"id": str(n), "contents": f'"w{n}"\n{text}'} for n, text in enumerate(TEXTS.values())
    ]
    write_lines(folder / "corpus.jsonl", corpus)
    questions = [
        {
            "id": f"test_{n}",
            "question": f"w{5 * n} w{5 * n + 1}",
            "golden_answers": [f"w{5 * n + 3}", "other"],
            "metadata": {"level": "easy"},
        }
        for n in range(6)
    ]
    questions.append({"id": "none", "question": "w1", "golden_answers": [], "metadata": None})
    write_lines(folder / "test.jsonl", questions)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("home")
    config = ImpRAGConfig(base_model="tiny", b=1, t=3, k=2, max_passage_tokens=16)
    save_pretrained(ImpRAGModel(tiny_lm(), config), tiny_tokenizer(), path / "model")
    write_beir(path / "beir")
    write_flashrag(path / "flashrag")
    return path


@pytest.fixture(autouse=True)
def cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPRAG_CACHE", str(home / "cache"))


def run(home: Path, *arguments: object) -> int:
    words = [str(one) for one in arguments]
    return main([*words, "--model", str(home / "model")])


def test_beir_from_an_index_to_ir_measures(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index, out = tmp_path / "index", tmp_path / "run"
    assert run(home, "index", home / "beir", "--out", index) == 0
    evaluate = ("--tasks", f"beir={home / 'beir'}", "--index", index, "--out", out)
    assert run(home, "eval", *evaluate, "--retrieval-only", "--dtype", "float32") == 0
    metrics = json.loads((out / "results.json").read_text())["tasks"]["beir"]["metrics"]
    qrels = list(ir_measures.read_trec_qrels(str(out / "qrels.trec")))
    assert {one.relevance for one in qrels} == {1, 2}
    assert len(qrels) == 16
    ranking = list(ir_measures.read_trec_run(str(out / "run.trec")))
    expected = ir_measures.calc_aggregate([nDCG @ 10, RR], qrels, ranking)
    assert metrics["ndcg@10"]["mean"] == pytest.approx(expected[nDCG @ 10], abs=1e-6)
    assert metrics["mrr"]["mean"] == pytest.approx(expected[RR], abs=1e-6)
    assert "answer_recall@1" not in metrics
    assert "nDCG@10" in capsys.readouterr().out
    assert run(home, "eval", *evaluate[:-1], tmp_path / "read", "--limit", 2) == 0
    # Other systems' files are scored like the run.
    other = tmp_path / "other.trec"
    lines = (out / "run.trec").read_text().splitlines()
    other.write_text("\n".join(line.removeprefix("beir:") for line in lines if ":q5" not in line))
    capsys.readouterr()
    assert main(["compare", *map(str, (out, out / "run.trec", other))]) == 0
    assert "nDCG@10" in capsys.readouterr().out
    assert main(["compare", *map(str, (out, out / "run.trec", other)), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    (row,) = [one for one in rows if one["metric"] == "ndcg@10"]
    means = [one["mean"] for one in row["estimates"]]
    assert means[0] == pytest.approx(means[1], abs=1e-6)
    assert means[2] < means[0]
    bad = {"": "is empty", "a b c": "line 1: expected", "x Q0 d 1 1 t": "no query"}
    for content, words in bad.items():
        other.write_text(content)
        assert main(["compare", str(out), str(other)]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("write", [write_beir, write_flashrag])
def test_only_the_passages_of_a_folder_with_questions_are_indexed(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    write(tmp_path / "set")
    (tmp_path / "notes.txt").write_text("a note")
    corpus = load_corpus(tmp_path / "set")
    assert len(corpus) == COUNT
    assert sum(corpus.manifest["skipped"]["unread"].values()) == {write_beir: 3}.get(write, 1)
    assert len(load_corpus(tmp_path)) == COUNT + 1
    (tmp_path / "set" / "corpus.jsonl").unlink()
    with pytest.raises(ImpRAGError, match="holds the questions of a data set without its passages"):
        load_corpus(tmp_path / "set")


def test_the_splits_of_beir(home: Path, tmp_path: Path) -> None:
    (test,) = read_tasks([f"beir={home / 'beir'}"])
    assert [one.id for one in test.examples] == [f"q{n}" for n in range(9) if n != 2]
    assert test.examples[0].relevance == {"d0": 2, "d1": 1}
    (dev,) = read_tasks([f"beir={home / 'beir'}"], split="dev")
    assert [one.id for one in dev.examples] == ["q0"]
    with pytest.raises(ImpRAGError, match="no split 'train'; it has dev, test"):
        read_tasks([f"beir={home / 'beir'}"], split="train")
    with pytest.raises(ImpRAGError, match="no answer to learn"):
        load_task("beir").response(dev.examples[0])


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (b"q1\td1\n", r"line 2: expected query-id"),
        (b"q1\td1\tmuch\n", r"line 2: expected a whole number as the score, .* not 'much'"),
        (b"\nq1\td1\t1.0\n", r"line 3: expected a whole number as the score, .* not '1\.0'"),
        (b"q1 d1 1\n", r"line 2: expected query-id"),
        (b"q1\td1\t0\n", r"names no relevant"),
        (b"q1\td1\t1\nq1\td1\t2\n", r"line 3: query 'q1' grades the passage 'd1' 2 here and 1"),
        (b"q1\td\xe9\t1\n", r"is not UTF-8 text: .*; save it as UTF-8"),
    ],
)
def test_bad_qrels_are_named(tmp_path: Path, lines: bytes, problem: str) -> None:
    write_beir(tmp_path / "beir")
    content = b"query-id\tcorpus-id\tscore\n" + lines
    (tmp_path / "beir" / "qrels" / "test.tsv").write_bytes(content)
    with pytest.raises(ImpRAGError, match=rf"test\.tsv,? {problem}"):
        read_tasks([f"beir={tmp_path / 'beir'}"])


def test_queries_that_beir_judges_without_their_text_are_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_beir(tmp_path / "beir")
    queries = tmp_path / "beir" / "queries.jsonl"
    lines = queries.read_text().splitlines()
    queries.write_text("\n".join(lines[2:]))
    with open(tmp_path / "beir" / "qrels" / "test.tsv", "a") as qrels:
        qrels.write("\n")  # a blank line at the end
    assert len(read_tasks([f"beir={tmp_path / 'beir'}"])[0].examples) == 6
    note = capsys.readouterr().err
    assert "note: 2 of 8 queries in " in note
    assert "such as 'q0'" in note
    for line, problem in (
        (lines[4], "line 8: the query 'q4' already occurs in .*line 3"),
        ('{"_id": "q0", "text": " "}', "line 8: field 'text' is empty text"),
    ):
        queries.write_text("\n".join([*lines[2:], line]))
        with pytest.raises(ImpRAGError, match=problem):
            read_tasks([f"beir={tmp_path / 'beir'}"])


def test_files_and_folders_that_need_a_task_say_so(home: Path) -> None:
    with pytest.raises(ImpRAGError, match=r"--tasks TASK=.*test\.jsonl"):
        read_tasks([str(home / "flashrag" / "test.jsonl")])
    with pytest.raises(ImpRAGError, match=r"--tasks beir=.*beir$"):
        read_tasks([str(home / "beir")])


def test_compressed_queries_of_beir(tmp_path: Path) -> None:
    write_beir(tmp_path / "beir")
    queries = tmp_path / "beir" / "queries.jsonl"
    (tmp_path / "beir" / "queries.jsonl.gz").write_bytes(gzip.compress(queries.read_bytes()))
    queries.unlink()
    assert len(read_tasks([f"beir={tmp_path / 'beir'}"])[0].examples) == 8


def test_flashrag_from_an_index_to_answers(home: Path, tmp_path: Path) -> None:
    corpus = load_corpus(home / "flashrag" / "corpus.jsonl")
    assert (corpus[3].id, corpus[3].title, corpus[3].text) == ("3", "w3", TEXTS["d3"])
    index, out = tmp_path / "index", tmp_path / "run"
    assert run(home, "index", home / "flashrag", "--out", index) == 0
    tasks = f"nq={home / 'flashrag' / 'test.jsonl'}"
    (read,) = read_tasks([tasks])
    assert len(read.examples) == 6
    assert (read.examples[1].id, read.examples[1].answers) == ("test_1", ["w8", "other"])
    assert dict(read.examples[1].meta) == {"level": "easy"}
    assert run(home, "eval", "--tasks", tasks, "--index", index, "--out", out) == 0
    metrics = json.loads((out / "results.json").read_text())["tasks"]["nq"]["metrics"]
    assert {"exact_match", "f1", "answer_recall@10"} <= metrics.keys()


@pytest.mark.parametrize(
    ("contents", "title", "text"),
    [
        ('"A title"\nThe text.', "A title", "The text."),
        ('"A title"', "", '"A title"'),
        ('"Quoted" words\nmore', "", '"Quoted" words\nmore'),
        ("A line\nmore", "", "A line\nmore"),
        ('""\ntext', "", '""\ntext'),
    ],
)
def test_titles_in_contents(tmp_path: Path, contents: str, title: str, text: str) -> None:
    write_lines(tmp_path / "c.jsonl", [{"id": "1", "contents": contents}])
    (passage,) = load_corpus(tmp_path / "c.jsonl")
    assert (passage.title, passage.text) == (title, text)
