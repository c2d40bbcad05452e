"""What every task has to do."""

import json
from pathlib import Path
from typing import ClassVar

import pytest

from imprag.errors import ImpRAGError
from imprag.evaluation.metrics import ANSWER_METRICS
from imprag.tasks import Example, Task, load_task, task_names, write_examples


class TaskSuite:
    """Tests of a task; inherit them and say which task is meant.

    Attributes:
        name: that the task is registered under.
        file: the name of a file in the set's official format.
        content: of that file; two examples will do.
    """

    name: ClassVar[str]
    file: ClassVar[str]
    content: ClassVar[str]

    @property
    def task(self) -> Task:
        """The task, as the command line finds it."""
        return load_task(self.name)

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        """The official file."""
        (tmp_path / self.file).write_text(self.content, encoding="utf-8")
        return tmp_path / self.file

    @pytest.fixture
    def examples(self, source: Path) -> list[Example]:
        """What the task reads from the official file."""
        return list(self.task.read(source))

    def test_it_is_found_by_its_name(self) -> None:
        assert self.name in task_names()
        assert self.task.name == self.name

    def test_its_name_can_be_typed(self) -> None:
        assert self.name == self.name.lower()
        assert not set(self.name) & set(" =,")

    def test_its_metric_exists(self) -> None:
        assert self.task.metric in ANSWER_METRICS

    def test_examples_can_be_asked_and_answered(self, examples: list[Example]) -> None:
        assert examples
        assert len({example.id for example in examples}) == len(examples)
        for example in examples:
            assert example.task == self.name
            assert example.input.strip()
            assert all(answer.strip() for answer in example.answers)
            prompt = self.task.prompt(example)
            assert prompt == prompt.rstrip(), "the answer follows after a space of its own"
            assert self.task.response(example).strip() in example.answers

    def test_reading_again_gives_the_same(self, source: Path, examples: list[Example]) -> None:
        assert list(self.task.read(source)) == examples

    def test_examples_in_imprags_form_are_read_back_equal(
        self, examples: list[Example], tmp_path: Path
    ) -> None:
        write_examples(tmp_path / "written.jsonl", examples)
        assert list(self.task.read(tmp_path / "written.jsonl")) == examples

    def test_a_file_of_something_else_is_refused_by_its_name(self, tmp_path: Path) -> None:
        (tmp_path / "other.jsonl").write_text(json.dumps({"nothing": "known"}) + "\n")
        with pytest.raises(ImpRAGError, match="other.jsonl"):
            list(self.task.read(tmp_path / "other.jsonl"))
