"""Training examples: from tasks, from the teacher's ranks or gold passages, from the corpus."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from imprag.corpus import Corpus, Passage, load_corpus
from imprag.errors import ImpRAGError
from imprag.io.files import sha256, write_json
from imprag.tasks import Answer, Example, TaskExamples, load_task, write_examples
from imprag.training import data
from imprag.training.data import load_sources, read_source, retrieval_examples, synthetic_examples
from imprag.training.recipe import BatchSettings, Recipe, TeacherSettings
from imprag.training.sources import TaskSource
from imprag.training.teacher import label_prompts, load_retriever

COUNTRIES = ("Chad", "Mali", "Peru", "Cuba")
SECTIONS = ("People", "Land", "State")
PASSAGES = [
    Passage(
        f"{country}/{section}",
        f"{country}, {section}",
        f"The {section} of {country} is known to all. It is told in two sentences by Ptolemy.",
        {"section": section},
    )
    for country in COUNTRIES
    for section in SECTIONS
] + [Passage("odd", "", "One odd text without a title")]
SETTINGS = TeacherSettings(retriever="bm25", hard_negatives=(5, 8))


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    monkeypatch.setenv("IMPRAG_CACHE", str(tmp_path / "cache"))
    return Corpus.build(PASSAGES, tmp_path / "corpus")


def example(number: int, answer: str, *gold: str, **meta: Any) -> Example:
    proof = [{"passage_id": passage_id} for passage_id in gold]
    return Example(f"e{number}", f"question {number}?", [Answer(answer, proof)], meta)


# --- Labels -------------------------------------------------------------------------------------


def test_pseudo_positives_and_hard_negatives_by_rank(corpus: Corpus) -> None:
    tasks = TaskExamples(load_task("nq"), [example(1, "x", "Chad/Land"), example(2, "y")], "test")
    ranked = np.array([[3, 0, 7, 1, 2, 4, 9, 8, 5], range(8, -1, -1)], np.int32)
    first, second = retrieval_examples(tasks, corpus, ranked, SETTINGS, count=2)
    assert first.prompt == "Q: question 1? A:"
    assert first.response == " x"
    assert first.positives == (3, 0)
    assert first.known == (7, 1)
    assert first.hard_negatives == (2, 4, 9, 8)
    assert first.answers == ("x",)
    assert first.group == ("Mali, People",)
    assert (second.positives, second.hard_negatives) == ((8, 7), (4, 3, 2, 1))


def test_gold_passages_are_never_hard_negatives(corpus: Corpus) -> None:
    asked = [example(1, "x", "Chad/State", "Mali/Land"), example(2, "y", "Peru/People")]
    tasks = TaskExamples(load_task("nq"), asked, "test")
    ranked = np.array([[3, 0, 7, 1, 2, 4, 9, 8], range(8)], np.int32)
    first, second = retrieval_examples(tasks, corpus, ranked, SETTINGS, "gold")
    assert (first.positives, first.known, first.hard_negatives) == ((2, 4), (), (9, 8))
    assert (second.positives, second.hard_negatives) == ((6,), (4, 5, 7))
    without = retrieval_examples(tasks, corpus, None, SETTINGS, "gold")
    assert [(one.positives, one.hard_negatives) for one in without] == [((2, 4), ()), ((6,), ())]


def test_missing_gold_passages_are_refused(corpus: Corpus) -> None:
    tasks = TaskExamples(load_task("nq"), [example(1, "x", "odd"), example(2, "y")], "some file")
    with pytest.raises(ImpRAGError, match=r"some file: 1 of 2 examples of task 'nq' name .*'e2'"):
        retrieval_examples(tasks, corpus, None, SETTINGS, "gold")
    tasks = TaskExamples(load_task("nq"), [example(1, "x", "nowhere")], "some file")
    with pytest.raises(
        ImpRAGError, match="some file, task 'nq': example 'e1' names .* 'nowhere', which"
    ):
        retrieval_examples(tasks, corpus, None, SETTINGS, "gold")


def test_groups_are_relations_or_titles(corpus: Corpus) -> None:
    asked = [
        example(1, "x", "Chad/State", group=["Chad", "capital"]),
        example(2, "x", "Chad/State", group="Chad"),
        example(3, "x", "odd"),
    ]
    tasks = TaskExamples(load_task("nq"), asked, "test")
    found = retrieval_examples(tasks, corpus, None, SETTINGS, "gold")
    assert [one.group for one in found] == [("Chad", "capital"), ("Chad, State",), ()]


def test_label_answers_do_not_mark_passages(corpus: Corpus) -> None:
    tasks = TaskExamples(load_task("fever"), [example(1, "True", "odd")], "test")
    (found,) = retrieval_examples(tasks, corpus, None, SETTINGS, "gold")
    assert found.answers == ()
    assert found.response == " True"


# --- Synthetic examples -------------------------------------------------------------------------


def test_plain_text_has_no_prompt(corpus: Corpus) -> None:
    found = synthetic_examples("corpus_text", corpus)
    assert sorted(one.response for one in found) == sorted(passage.text for passage in PASSAGES)
    assert {one.prompt for one in found} == {""}
    assert {one.positives for one in found} == {()}


def test_prompt_templates_alternate_by_example(corpus: Corpus, tmp_path: Path) -> None:
    examples = [example(n, "x", "Chad/Land") for n in range(60)]
    write_examples(tmp_path / "nq.jsonl", examples)
    content = {"tasks": str(tmp_path / "nq.jsonl"), "task": "nq"}
    asked = read_source(
        TaskSource(**content, prompt_templates=("{input} Be brief. A:", "Look up: {input}"))
    )
    prompts = [asked.task.prompt(one) for one in examples]
    assert prompts == [asked.task.prompt(one) for one in examples]
    starts = {prompt.replace(one.input, "") for prompt, one in zip(prompts, examples, strict=True)}
    assert starts == {"Q:  A:", " Be brief. A:", "Look up: "}
    with pytest.raises(ValidationError, match="has no {input}: Be brief"):
        TaskSource(**content, prompt_templates=("Be brief",))


def test_labels_as_answers_mark_no_passage(corpus: Corpus, tmp_path: Path) -> None:
    examples = [example(n, "True", "Chad/Land") for n in range(20)]
    write_examples(tmp_path / "labels.jsonl", examples)
    source = {"tasks": str(tmp_path / "labels.jsonl"), "task": "verification", "positives": "gold"}
    recipe = Recipe(data=(source,), batch=BatchSettings(hard_negatives=0))
    (found,) = load_sources(recipe, corpus)
    assert {one.response for one in found.examples} == {" True"}
    assert {one.positives for one in found.examples} == {(1,)}
    assert {one.answers for one in found.examples} == {()}


@pytest.mark.parametrize(
    "kind", ["phrase_denoising", "sentence_generation", "corpus_text", "cloze"]
)
def test_synthetic_examples_are_drawn_by_the_seed(corpus: Corpus, kind: Any) -> None:
    found = synthetic_examples(kind, corpus, seed=3)
    assert synthetic_examples(kind, corpus, seed=3) == found
    assert synthetic_examples(kind, corpus, seed=4) != found
    assert len(found) > len(PASSAGES) / 2  # not every short text has a word to corrupt or leave out
    assert synthetic_examples(kind, corpus, seed=3, limit=4) == found[:4]
    if kind != "corpus_text":
        assert all(one.prompt.endswith(" A:") for one in found)
        assert all(one.response.startswith(" ") for one in found)
    kept = synthetic_examples(kind, corpus, keep=lambda passage: passage.id.startswith("Chad"))
    assert {one.id.rpartition("/")[0] for one in kept} == {f"{kind}-Chad"}


def test_the_positive_of_a_cloze_is_its_own_passage(corpus: Corpus) -> None:
    found = synthetic_examples("cloze", corpus)
    assert found
    for one in found:
        (row,) = one.positives
        assert one.response.strip() in corpus[row].text
        assert one.prompt.startswith("Fill in the blank: ")
        assert "____" in one.prompt
        assert one.group == (corpus[row].title,)


# --- Recipes ------------------------------------------------------------------------------------


@pytest.fixture
def bench_folder(tmp_path: Path) -> Path:
    """A benchmark of two tasks; Chad and Mali are in train, each other country in its own split."""
    folder = tmp_path / "bench"
    split_of = {"Chad": "train", "Mali": "train", "Peru": "dev", "Cuba": "test"}
    files: dict[str, Any] = {}
    for task in ("nq", "coqa"):
        for split in ("train", "dev"):
            asked = [
                Example(
                    f"{task} {country} {section}",
                    f"{section} of {country}?",
                    [Answer(country, [{"passage_id": f"{country}/{section}"}])],
                    {"context": "text", "group": [country, section]},
                )
                for country in COUNTRIES
                if split_of[country] == split
                for section in SECTIONS
            ]
            file = folder / task / f"{split}.jsonl"
            count = write_examples(file, asked)
            entry = {"file": f"{task}/{split}.jsonl", "examples": count, "sha256": sha256(file)}
            files.setdefault(task, {"splits": {}})["splits"][split] = entry
    countries = {s: [c for c in COUNTRIES if split_of[c] == s] for s in ("train", "dev", "test")}
    manifest = {
        "name": "tiny",
        "version": 1,
        "seed": 0,
        "tasks": files,
        "splits": {"countries": countries, "articles": {}},
    }
    write_json(folder / "benchmark.json", manifest)
    return folder


def recipe(*sources: dict[str, Any], **settings: Any) -> Recipe:
    teacher = {"retriever": "bm25", "hard_negatives": [5, 8]}
    batch = {"positives": 2, **settings.pop("batch", {})}
    return Recipe.model_validate({"data": sources, "teacher": teacher, "batch": batch, **settings})


def test_load_sources_reads_and_labels_all_sources_of_a_recipe(
    corpus: Corpus, bench_folder: Path
) -> None:
    sources = load_sources(
        recipe(
            {"tasks": str(bench_folder), "task": "nq", "weight": 2.0},
            {"tasks": str(bench_folder), "task": "nq", "positives": "gold", "limit": 2},
            {"tasks": str(bench_folder), "task": "coqa"},
            {"synthetic": "corpus_text", "weight": 0.5},
        ),
        corpus,
    )
    assert [source.name for source in sources] == ["nq", "nq", "coqa", "corpus_text"]
    assert [source.weight for source in sources] == [2.0, 1.0, 1.0, 0.5]
    assert [len(source.examples) for source in sources] == [6, 2, 6, 7]
    taught, gold, reading, text = sources
    # Only the split that was asked for, whatever it is made of.
    for source in sources:
        for one in source.examples:
            assert not {"Peru", "Cuba"} & set(one.prompt.replace("?", "").split())
    assert all("Peru" not in one.response and "Cuba" not in one.response for one in text.examples)
    prompts = [one.prompt for one in taught.examples]
    rows = label_prompts(load_retriever("bm25", corpus), prompts, 8)
    assert [list(one.positives) for one in taught.examples] == rows[:, :2].tolist()
    assert [list(one.hard_negatives) for one in taught.examples] == rows[:, 4:8].tolist()
    for one in gold.examples:
        assert corpus[one.positives[0]].id == one.id.removeprefix("nq ").replace(" ", "/")
        assert one.group == tuple(one.id.split()[1:])
    for one in (*reading.examples, *text.examples):
        assert (one.positives, one.hard_negatives, one.group) == ((), (), ())
    assert reading.examples[0].prompt == "text Q: People of Chad? A:"


def test_only_trained_splits_give_synthetic_examples(corpus: Corpus, bench_folder: Path) -> None:
    sources = load_sources(
        recipe(
            {"tasks": str(bench_folder), "task": "coqa", "split": "dev"},
            {"synthetic": "corpus_text"},
        ),
        corpus,
    )
    assert {one.id.split()[1] for one in sources[0].examples} == {"Peru"}
    ids = {one.id for one in sources[1].examples}
    assert ids == {"corpus_text-odd", *(f"corpus_text-Peru/{name}" for name in SECTIONS)}


def test_the_teacher_runs_only_if_its_ranks_are_used(
    corpus: Corpus, bench_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_teacher(*arguments: object) -> None:
        raise AssertionError("the teacher was asked")

    monkeypatch.setattr(data, "load_retriever", no_teacher)
    gold = {"tasks": str(bench_folder), "task": "nq", "positives": "gold"}
    (source,) = load_sources(recipe(gold, batch={"hard_negatives": 0}), corpus)
    assert not any(one.hard_negatives for one in source.examples)
    for needed in (
        recipe(gold),
        recipe({**gold, "positives": "teacher"}, batch={"hard_negatives": 0}),
    ):
        with pytest.raises(AssertionError, match="the teacher was asked"):
            load_sources(needed, corpus)


def test_questions_of_flashrag_are_trained_on(corpus: Corpus, tmp_path: Path) -> None:
    fields = {"id": "train_0", "question": "Where is Ptolemy in Chad?", "golden_answers": ["Land"]}
    (tmp_path / "train.jsonl").write_text(json.dumps(fields) + "\n")
    (source,) = load_sources(recipe({"tasks": str(tmp_path / "train.jsonl"), "task": "nq"}), corpus)
    (found,) = source.examples
    assert (found.prompt, found.response) == ("Q: Where is Ptolemy in Chad? A:", " Land")
    assert len(found.positives) == 2


def test_examples_are_read_from_files(corpus: Corpus, tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    write_examples(file, [example(n, "x", "Chad/Land") for n in range(5)])
    (source,) = load_sources(
        recipe(
            {"tasks": str(file), "task": "nq", "positives": "gold"},
            batch={"hard_negatives": 0},
        ),
        corpus,
    )
    assert [one.positives for one in source.examples] == [(1,)] * 5
    poor = Corpus.build([Passage("p", "", "One.")], tmp_path / "poor")
    with pytest.raises(ImpRAGError, match="no passage of .* gives an example of"):
        load_sources(recipe({"synthetic": "sentence_generation"}), poor)


def test_synthetic_examples_can_come_from_one_corpus(corpus: Corpus, tmp_path: Path) -> None:
    for name, passages in (("first", PASSAGES[:3]), ("second", PASSAGES[3:])):
        Corpus.build(passages, tmp_path / name)
    paths = [str(tmp_path / name) for name in ("first", "second")]
    data = ({"synthetic": "title", "corpus": paths[1]}, {"synthetic": "title"})
    both = load_corpus(paths)
    second, everywhere = load_sources(Recipe(corpus=paths, data=data), both)
    # Rows are those of the whole.
    assert {row for one in second.examples for row in one.positives} == set(range(3, 12))
    assert {row for one in everywhere.examples for row in one.positives} == set(range(12))
