"""What a task is: how it is asked, where its examples come from, how its answers are judged."""

import itertools
import random
import string
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from imprag.errors import ImpRAGError
from imprag.io.plugins import plugins
from imprag.tasks.example import Example
from imprag.tasks.records import Record, read_records

#: Turns the records of an official file into examples.
Reader = Callable[[Iterable[Record]], Iterator[Example]]

#: Packages offer tasks under this entry-point group: a `Task`, or a sequence of them.
GROUP = "imprag.tasks"

_TASKS: dict[str, "Task"] = {}


@dataclass(frozen=True)
class Task:
    """The declaration of a task.

    Attributes:
        name: lower case, as on the command line.
        template: the prompt. ``{input}`` stands for the example's input, other names for texts in
            its ``meta``. The answer follows after a space.
        reader: of the set's official format. Examples in KILT's form need none.
        metric: a name in `imprag.evaluation.metrics.ANSWER_METRICS`. ``accuracy`` means that
            answers are labels, so that it makes no sense to look for them in passages.
        retrieval: whether passages are retrieved for it.
        max_new_tokens: where generation stops at the latest.
        joint_evidence: whether all gold passages of an answer are needed, as in two-hop questions,
            rather than any of them.
        normalize: applied to every example that is read, in whatever format.
        plain_template: used instead of ``template`` for inputs without ``[SEP]``.
        prompt_templates: further templates, which take turns with ``template`` by the example's id.
    """

    name: str
    template: str
    reader: Reader | None = None
    metric: str = "exact_match"
    retrieval: bool = True
    max_new_tokens: int = 32
    joint_evidence: bool = False
    normalize: Callable[[Example], Example] | None = None
    plain_template: str = ""
    prompt_templates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for template in (self.template, *self.prompt_templates):
            if "{input}" not in template:
                raise ImpRAGError(
                    f"the template of task '{self.name}' has no {{input}}: {template}"
                )

    def prompt(self, example: Example) -> str:
        """The text that the model goes on from.

        Raises:
            ImpRAGError: the template asks for a text that is not in the example's ``meta``.
        """
        plain = self.plain_template and "[SEP]" not in example.input
        template = self.plain_template if plain else self._template(example)
        texts = {**example.meta, "input": example.input}
        for _, name, _, _ in string.Formatter().parse(template):
            if name and not isinstance(texts.get(name), str):
                raise ImpRAGError(
                    f"example '{example.id}' has no text '{name}' in its meta, "
                    f"which the template of task '{self.name}' asks for"
                )
        return template.format_map(texts)

    def _template(self, example: Example) -> str:
        if not self.prompt_templates:
            return self.template
        return random.Random(example.id).choice((self.template, *self.prompt_templates))

    def response(self, example: Example) -> str:
        """What the model should add to the prompt: a space and the first answer."""
        return f" {example.answers[0]}"

    def read(self, source: str | Path, split: str = "validation") -> Iterator[Example]:
        """The examples of an official file or of a file in KILT's form; see `read_records`.

        Of a file whose examples name their task, those of this task are read.

        Raises:
            ImpRAGError: the file is missing or not in its format, or holds no example of the task.
        """
        records = read_records(source, split)
        first = next(records, None)
        if first is None:
            raise ImpRAGError(f"{source} is empty; expected examples of task '{self.name}'")
        records = itertools.chain([first], records)
        reader = self.reader
        if reader is None or {"input", "output"} <= first.keys():
            reader = read_kilt
        others = set()
        found = False
        for example in reader(records):
            if example.task in ("", self.name):
                found = True
                example = replace(example, task=self.name)
                yield self.normalize(example) if self.normalize else example
            else:
                others.add(example.task)
        if not found:
            held = f"; it holds {', '.join(sorted(others))}" if others else ""
            raise ImpRAGError(f"{source} holds no example of task '{self.name}'{held}")


def read_kilt(records: Iterable[Record]) -> Iterator[Example]:
    """Reader of examples in KILT's form, which is ImpRAG's own too."""
    return map(Example.from_record, records)


def register_task(task: Task) -> Task:
    """Make a task known to `load_task` under its name.

    Raises:
        ImpRAGError: another task has the name.
    """
    if _TASKS.setdefault(task.name, task) != task:
        raise ImpRAGError(f"there is already a task '{task.name}'; choose another name")
    return task


def load_task(name: str) -> Task:
    """The task of that name.

    Raises:
        ImpRAGError: there is none; the message lists those there are.
    """
    if name not in _TASKS and name not in task_names():
        raise ImpRAGError(
            f"unknown task '{name}'; known are {', '.join(task_names())} "
            f"(packages add others under the entry-point group {GROUP})"
        )
    return _TASKS[name]


def task_names() -> list[str]:
    """The names of all registered tasks and of those that installed packages offer, sorted."""
    for offered in plugins(GROUP).values():
        for task in [offered] if isinstance(offered, Task) else offered:
            register_task(task)
    return sorted(_TASKS)
