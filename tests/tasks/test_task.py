"""Tasks: declarations, registry, prompts, and the ten lines that add one."""

import re
from pathlib import Path

import pytest

from imprag.errors import ImpRAGError
from imprag.evaluation.metrics import ANSWER_METRICS
from imprag.tasks import TASKS, Answer, Example, Task, load_task, register_task, task_names

DOCS = Path(__file__).parents[2] / "docs" / "guides" / "tasks.md"

EIGHT = ["nq", "simpleqa", "hotpotqa", "2wiki", "trex", "zsre", "fever", "aida"]
INSTRUCTION = ["oasst1", "coqa", "drop", "newsqa", "pubmedqa", "quail", "squad_v2", "cnn_dailymail"]
SYNTHETIC = ["phrase_denoising", "sentence_generation", "corpus_text"]


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TASKS, "_registered", dict(TASKS._registered))


def example(text: str, **meta: str) -> Example:
    return Example("1", text, [Answer("x")], meta)


def test_only_the_papers_knowledge_intensive_tasks_retrieve() -> None:
    assert {*EIGHT, *INSTRUCTION, *SYNTHETIC} <= set(task_names())
    assert all(load_task(name).retrieval for name in EIGHT)
    assert not any(load_task(name).retrieval for name in [*INSTRUCTION, *SYNTHETIC])
    assert {load_task(name).metric for name in task_names()} <= set(ANSWER_METRICS)
    assert [name for name in EIGHT if load_task(name).joint_evidence] == ["hotpotqa", "2wiki"]
    assert [name for name in EIGHT if load_task(name).metric == "accuracy"] == ["fever"]


# The templates as the paper prints them, up to the answer.
PAPER = {
    "nq hotpotqa simpleqa 2wiki": "Q: {question} A:",
    "aida": "{context} Output the Wikipedia page title of the entity mentioned between [START] "
    "and [END] in the given text A:",
    "fever": "Is this statement true? {statement} A:",
    "trex zsre": "{entity} [SEP] {relation} Provide the answer corresponding to the relation "
    "specified after [SEP] for the entity mentioned before [SEP] A:",
    "oasst1": "{turn 1} {turn 2} {turn 3}",
    "coqa drop newsqa pubmedqa squad_v2 quail": "{context} Q: {question} A:",
    "cnn_dailymail": "{context} Summarize this article:",
    "phrase_denoising": "{context} Recover the original phrases marked between [START] and [END] "
    "in the given text A:",
    "sentence_generation": "{context} [SEP] next sentence Generate a sentence corresponding to "
    "the relation specified after [SEP] for the context mentioned before [SEP] A:",
}
INPUTS = {
    "{entity} [SEP] {relation}": "{entity} [SEP] {relation}",
    "{turn 1} {turn 2} {turn 3}": "{turn 1} {turn 2} {turn 3}",
    "{context} [SEP] next sentence": "{context} [SEP] next sentence",
    "{question}": "{question}",
    "{statement}": "{statement}",
    "{context}": "{context}",
}


@pytest.mark.parametrize(
    ("name", "template"), [(name, t) for names, t in PAPER.items() for name in names.split()]
)
def test_templates_equal_the_papers(name: str, template: str) -> None:
    bare = next(text for text in INPUTS if text in template)
    assert load_task(name).prompt(example(bare, context="{context}")) == template


def test_zsre_questions_get_the_question_template() -> None:
    assert load_task("zsre").prompt(example("Who wrote it?")) == "Q: Who wrote it? A:"
    # Elsewhere a missing [SEP] is left to the reader of the prompt.
    assert load_task("trex").prompt(example("Who wrote it?")).startswith("Who wrote it? Provide")


def test_braces_in_an_input_are_text() -> None:
    assert (
        load_task("nq").prompt(example("what is {x} in {input}")) == "Q: what is {x} in {input} A:"
    )


def test_a_missing_text_of_the_template_is_an_error() -> None:
    with pytest.raises(ImpRAGError, match=r"example '1' has no text 'context' .* task 'coqa'"):
        load_task("coqa").prompt(example("Where?"))


def test_unknown_and_taken_names_are_refused() -> None:
    with pytest.raises(ImpRAGError, match="unknown task 'nqq'; known are 2wiki, aida"):
        load_task("nqq")
    register_task(load_task("nq"))
    with pytest.raises(ImpRAGError, match="two tasks named 'nq'"):
        register_task(Task("nq", "{input}"))
    with pytest.raises(ImpRAGError, match=r"template of task 'x' has no \{input\}"):
        Task("x", "Q: {question} A:")


def test_the_ten_lines_of_the_docs_add_a_task(tmp_path: Path) -> None:
    section = DOCS.read_text().split("## Add a task")[1]
    [code] = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    [line] = re.findall(r"```json\n(.*?)```", section, re.DOTALL)
    exec(code, {})
    (tmp_path / "quiz.jsonl").write_text(line)
    quiz = load_task("quiz")
    [question] = quiz.read(tmp_path / "quiz.jsonl")
    assert quiz.prompt(question) == "Quiz: Which river runs through Tarnby? Answer:"
    assert question.answers == ["Tarn", "River Tarn"]
    (tmp_path / "bad.jsonl").write_text('{"qid": 7}')
    with pytest.raises(ImpRAGError, match="bad.jsonl, line 1: field 'gold' is missing"):
        list(quiz.read(tmp_path / "bad.jsonl"))


def test_the_docs_table_lists_every_task() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| (\w+) \| (yes|no) \|", DOCS.read_text(), re.MULTILINE)
    table = {name: (metric, retrieval == "yes") for name, metric, retrieval in rows}
    names = {
        name for name in task_names() if "/" not in name
    }  # the rest: docs/reference/factbook.md
    assert table == {n: (load_task(n).metric, load_task(n).retrieval) for n in names}
