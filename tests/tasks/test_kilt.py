"""Importing KILT files links their references to the passages of a corpus."""

from pathlib import Path
from typing import Any

import official_formats as official
import pytest

from imprag.corpus import Corpus, Passage, read_passages
from imprag.tasks import Example, load_task, read_examples
from imprag.tasks.kilt import import_kilt

PAGES = [
    {
        "wikipedia_id": 101,
        "wikipedia_title": "Ada Lindqvist",
        "text": ["Ada Lindqvist\n", "Ada was a miller on the Tarn.\n", "She had a cat.\n"],
    },
    {
        "wikipedia_id": 102,
        "wikipedia_title": "River Tarn",
        "text": ["River Tarn\n", "A river.\n", "It runs through Osby. Tarnby lies on it too.\n"],
    },
    {
        "wikipedia_id": 103,
        "wikipedia_title": "Tarnby",
        "text": ["Tarnby\n", "A town. It is dry. It belongs to Nordland. Nordland is far.\n"],
    },
]


@pytest.fixture
def kilt_corpus(tmp_path: Path) -> Corpus:
    """A corpus made from KILT's knowledge source, in passages of one or two sentences."""
    source = official.write_content(tmp_path / "kilt_knowledgesource.jsonl", PAGES)
    return Corpus.build(read_passages(source, format="kilt", max_words=8), tmp_path / "kilt")


def titled_corpus(folder: Path) -> Corpus:
    texts = [
        ("t1", "ADA  Lindqvist", "A life."),
        ("t2", "Ada_Lindqvist", "Ada Lindqvist was a miller."),
        ("t3", "Tarnby", "It is dry."),
        ("t4", "Tarnby", "It belongs to Nordland."),
        ("t5", "Tarnby", "The Kingdom of Nordland is far."),
    ]
    return Corpus.build([Passage(*text) for text in texts], folder / "titled")


def run(
    folder: Path, corpus: Corpus, name: str, rows: Any = None
) -> tuple[list[Example], dict[str, int]]:
    source = official.write(folder, name) if rows is None else folder / "rows.jsonl"
    if rows is not None:
        official.write_content(source, rows)
    counts = import_kilt(source, corpus, folder / "out.jsonl", load_task(name))
    examples = list(read_examples(folder / "out.jsonl"))
    assert sum(counts.values()) == len(examples)
    return examples, {way: count for way, count in counts.items() if count}


def texts(example: Example, corpus: Corpus, *, joint: bool = False) -> list[set[str]]:
    return [
        {passage.text for passage in corpus.passages(corpus.rows(sorted(ids)))}
        for ids in example.evidence_sets(joint=joint)
    ]


def test_both_hops_are_linked_by_paragraph(kilt_corpus: Corpus, tmp_path: Path) -> None:
    [example], counts = run(tmp_path, kilt_corpus, "hotpotqa")
    assert counts == {"paragraph": 1}
    assert example.meta["link"] == "paragraph"
    assert texts(example, kilt_corpus, joint=True) == [
        {"Ada was a miller on the Tarn.", "Tarnby lies on it too."}
    ]
    # KILT's own references are kept for its page-level metrics.
    assert example.evidence_sets(joint=True, key="wikipedia_id") == [{"101", "102"}]


def test_only_passages_with_the_answer_are_linked_to_a_paragraph(
    kilt_corpus: Corpus, tmp_path: Path
) -> None:
    [example], _ = run(tmp_path, kilt_corpus, "trex")
    assert texts(example, kilt_corpus) == [{"It belongs to Nordland. Nordland is far."}]


def test_labels_are_not_searched_for_in_passages(kilt_corpus: Corpus, tmp_path: Path) -> None:
    examples, counts = run(tmp_path, kilt_corpus, "fever")
    assert counts == {"paragraph": 2}
    assert examples[0].answers == ["True"]
    assert texts(examples[0], kilt_corpus) == [
        {"A town. It is dry."},
        {"It belongs to Nordland. Nordland is far."},
    ]


def test_a_reference_without_paragraph_is_linked_to_the_first_passage(
    kilt_corpus: Corpus, tmp_path: Path
) -> None:
    [example], counts = run(tmp_path, kilt_corpus, "aida")
    assert counts == {"page": 1}
    assert example.input.startswith("MILLS - [START] LINDQVIST [END]")
    assert texts(example, kilt_corpus) == [{kilt_corpus[0].text}]


@pytest.mark.parametrize("change", [{"start_paragraph_id": 9, "end_paragraph_id": 9},
                                    {"start_paragraph_id": -1, "end_paragraph_id": -1},
                                    {"start_paragraph_id": "x"}])  # fmt: skip
def test_a_missing_paragraph_falls_back_to_the_page(
    kilt_corpus: Corpus, tmp_path: Path, change: dict[str, Any]
) -> None:
    [row] = official.TREX
    reference = {**row["output"][0]["provenance"][0], **change}
    rows = [{**row, "output": [{"answer": "Nordland", "provenance": [reference]}]}]
    [example], counts = run(tmp_path, kilt_corpus, "trex", rows)
    assert counts == {"page": 1}
    assert texts(example, kilt_corpus) == [{"It belongs to Nordland. Nordland is far."}]


def test_another_corpus_is_linked_by_title_and_answer(tmp_path: Path) -> None:
    corpus = titled_corpus(tmp_path)
    [example], counts = run(tmp_path, corpus, "trex")
    assert counts == {"title+answer": 1}
    assert example.evidence_sets(joint=False) == [{"t4"}, {"t5"}]
    [example], counts = run(tmp_path, corpus, "aida")
    assert counts == {"title+answer": 1}
    assert example.evidence_sets(joint=False) == [{"t2"}]
    examples, counts = run(tmp_path, corpus, "fever")
    assert counts == {"title": 2}
    assert examples[0].evidence_sets(joint=False) == [{"t3"}]


def test_unlinkable_references_are_kept_and_counted(tmp_path: Path) -> None:
    corpus = titled_corpus(tmp_path)
    # One of the two hops has no passage, so the question has no evidence.
    [example], counts = run(tmp_path, corpus, "hotpotqa")
    assert counts == {"none": 1}
    assert example.meta["link"] == "none"
    assert example.evidence_sets(joint=True) == []
    assert example.evidence_sets(joint=True, key="title") == [{"Ada Lindqvist", "River Tarn"}]
    rows = [{"id": 1, "input": "Tarnby [SEP] country", "output": [{"answer": "Nordland"}]}]
    assert run(tmp_path, corpus, "trex", rows)[1] == {"none": 1}


def test_a_second_import_replaces_links_to_the_first_corpus(
    kilt_corpus: Corpus, tmp_path: Path
) -> None:
    first, _ = run(tmp_path, kilt_corpus, "hotpotqa")
    rows = [example.to_json() for example in first]
    [example], counts = run(tmp_path, titled_corpus(tmp_path), "hotpotqa", rows)
    assert counts == {"none": 1}
    assert example.evidence_sets(joint=False) == [{"t1"}]
    unknown = Corpus.build([Passage("u", "Elsewhere", "Text.")], tmp_path / "unknown")
    [example], counts = run(tmp_path, unknown, "hotpotqa", rows)
    assert counts == {"none": 1}
    assert example.evidence_sets(joint=False) == []
