"""The report: its content, that it is self-contained, and that all texts are escaped."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tiny_evaluation import write_run

from imprag.corpus import Corpus, Passage
from imprag.evaluation.plots import bars, recall_curves
from imprag.evaluation.report import write_report
from imprag.evaluation.scoring import RECALL_DEPTHS

EVIL = "<script>alert('x')</script> & \"</td>"


class Page(HTMLParser):
    """Collects elements, addresses and text of a page, and checks that elements are closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [
            value or ""
            for name, value in attributes
            if name in ("src", "href", "xlink:href", "action", "data")
        ]
        if tag not in ("meta", "br", "link", "img", "input"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("td", "th", "small") and "table" in self.open:
            self.rows[-1][-1] = f"{self.rows[-1][-1]} {data.strip()}".strip()


def assert_self_contained(html: str, page: Page) -> None:
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags)
    assert all(address.startswith("#") for address in page.addresses)
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    assert page.open == []


def recalls(value: float, kind: str) -> dict[str, float]:
    return {f"{kind}_recall@{k}": value for k in RECALL_DEPTHS}


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    passages = [Passage(f"p{n}", f"title {n}", f"text {n}") for n in range(8)]
    passages.append(Passage("evil", EVIL, EVIL))
    return Corpus.build(passages, tmp_path / "corpus")


def prediction(task: str, number: int, right: bool, **fields: Any) -> dict[str, Any]:
    return {
        "task": task,
        "id": f"{task}-{number}",
        "prompt": f"Q: question {number} of {task} A:",
        "answers": ["gold one", "gold two"],
        "answer": f"said {number}",
        "gold": [["p1"]],
        "passages": [{"id": f"p{n}", "score": 8.0 - n} for n in range(8)],
        "hit_ranks": {"answer": None, "passage": 2},
        "metrics": {
            "exact_match": float(right),
            "f1": 0.5,
            **recalls(float(right), "passage"),
            "mrr": 0.25,
        },
        **fields,
    }


@pytest.fixture
def html(tmp_path: Path, corpus: Corpus) -> str:
    predictions = [prediction("nq", number, number % 4 == 0) for number in range(40)]
    predictions += [
        {
            **prediction("fever", number, False),
            "metrics": {"accuracy": 1.0, **({} if number else {"mrr": 0.5})},
            "gold": [],
            "hit_ranks": {},
        }
        for number in range(2)
    ]
    predictions.append(
        prediction(
            "evil",
            0,
            False,
            id=EVIL,
            prompt=EVIL,
            answer=EVIL,
            answers=[EVIL] * 7,
            passages=[{"id": "evil", "score": 0.5}],
            metrics={**recalls(0.5, "answer"), "exact_match": 0.0},
        )
    )
    predictions[-1]["task"] = "evil <b>"
    run = write_run(tmp_path / "run", predictions)
    write_report(run, corpus)
    return (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_the_report_is_complete_and_self_contained(html: str) -> None:
    page = Page(html)
    assert_self_contained(html, page)
    assert page.tags.count("svg") == 2
    assert page.tags.count("table") == 3


def test_tables_show_the_results(html: str) -> None:
    rows = [row for row in Page(html).rows if row]
    assert rows[0] == ["task", "n", "exact match", "F1", "accuracy"]
    nq = rows[1]
    assert nq[:2] == ["nq", "40"]
    assert nq[2].startswith("25.0 ")
    assert re.fullmatch(r"25\.0 1\d\.\d–\d\d\.\d", nq[2])
    assert nq[3] == "50.0 50.0–50.0"
    assert nq[4] == ""
    assert rows[2] == ["fever", "2", "", "", "100.0 100.0–100.0"]
    assert rows[3][:3] == ["evil <b>", "1", "0.0 0.0–0.0"]
    by_passage = next(row for row in rows if row[2] == "recall@1")
    assert rows[rows.index(by_passage) + 2][-1] == "50.0 50.0–50.0 n 1"
    assert by_passage == ["task", "n", *(f"recall@{k}" for k in RECALL_DEPTHS), "MRR"]


def test_texts_are_escaped(html: str) -> None:
    assert "<script" not in html
    assert "evil <b>" not in html
    page = Page(html)
    # Task, id, prompt, answer, five gold answers, passage's title and text; the plots' labels.
    assert page.text.count(EVIL) == 10
    assert "and 2 more" in page.text
    assert page.text.count("evil <b>") >= 4


def test_examples_show_right_and_wrong_answers_with_their_passages(html: str) -> None:
    articles = re.findall(r'<article class="sample (\w+)">(.*?)</article>', html, re.DOTALL)
    of_nq = [(kind, body) for kind, body in articles if "of nq" in body]
    assert [kind for kind, _ in of_nq] == ["right"] * 3 + ["wrong"] * 3
    numbers = [int(re.search(r"question (\d+) of", body)[1]) for _, body in of_nq]  # type: ignore[index]
    assert [number % 4 == 0 for number in numbers] == [True] * 3 + [False] * 3
    for number, (_, body) in zip(numbers, of_nq, strict=True):
        assert f"said {number}<" in body
        assert "gold one · gold two" in body
        assert re.findall(r"<b>(title \d)</b>", body) == [f"title {n}" for n in range(5)]
        assert body.count(">gold</span>") == 1
        assert "gold passage at rank 2" in body
        assert "answer not retrieved" in body
    assert [kind for kind, body in articles if "of fever" in body] == ["right"] * 2


def test_equal_runs_have_equal_reports(html: str, tmp_path: Path, corpus: Corpus) -> None:
    from imprag.evaluation.run_folder import RunFolder

    write_report(RunFolder.open(tmp_path / "run"), corpus)
    assert (tmp_path / "run" / "report.html").read_text(encoding="utf-8") == html


def test_recipe_and_versions_are_shown(html: str) -> None:
    text = Page(html).text
    assert "from: bm25" in text
    assert re.search(r"torch: \d", text)


def test_reports_without_retrieval_or_without_answers(tmp_path: Path) -> None:
    bare = {"task": "nq", "id": "1", "metrics": {"exact_match": 1.0}, "answer": ""}
    run = write_run(tmp_path / "run", [bare])
    write_report(run, None)
    html = (tmp_path / "run" / "report.html").read_text()
    assert "(no answer)" in html
    assert Page(html).tags.count("svg") == 1
    empty = write_run(tmp_path / "empty", [{"task": "nq", "id": "1", "metrics": {}}])
    write_report(empty, None)
    assert "<svg" not in (tmp_path / "empty" / "report.html").read_text()


def test_plots_show_all_tasks_and_runs() -> None:
    value = {"mean": 0.5, "low": 0.25, "high": 1.0}
    svg = bars({"task $a$": {"run_1": value, "b & c": value}, "task_b": {"b & c": value}}, "score")
    for name in ("task $a$", "task_b", "run_1", "b &amp; c", "score, %"):
        assert f">{name}<" in svg
    tasks = {
        f"task {n}": {f"{kind}_recall@{k}": value for kind in kinds for k in RECALL_DEPTHS}
        for n, kinds in enumerate([["passage"], ["answer"], ["passage", "answer"]] * 2)
    }
    svg = recall_curves(tasks)
    assert all(f">{name}<" in svg for name in [*tasks, "by passage", "by answer", "100"])
    assert svg.startswith("<svg")
