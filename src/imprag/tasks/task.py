"""The `Task` declaration (prompt template, reader and metric) and the registry of tasks."""

import itertools
import random
import string
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from imprag.corpus.questions import FLASHRAG_FIELDS, beir_queries
from imprag.errors import ImpRAGError
from imprag.io.files import expand_home
from imprag.io.plugins import plugins
from imprag.io.registry import Registry
from imprag.tasks.beir import read_beir
from imprag.tasks.example import Example
from imprag.tasks.flashrag import read_flashrag
from imprag.tasks.records import Record, read_records

#: A function that turns the records of an official file into examples.
Reader = Callable[[Iterable[Record]], Iterator[Example]]


@dataclass(frozen=True)
class Task:
    """The declaration of a task.

    Attributes:
        name: the name in lower case, as on the command line.
        template: the prompt template. ``{input}`` stands for the example's input, other names for
            texts in its ``meta``. The answer follows after a space.
        reader: the reader of the official format. Examples in KILT's form need none.
        metric: a name in `imprag.evaluation.metrics.ANSWER_METRICS`. ``accuracy`` means that the
            answers are labels, so that they are not searched for in passages.
        retrieval: whether passages are retrieved.
        max_new_tokens: the maximum number of generated tokens.
        joint_evidence: whether an answer needs all of its gold passages, as in two-hop questions.
            By default any one of them suffices.
        normalize: a function applied to every example that is read, in any format.
        plain_template: the template for inputs without ``[SEP]``, if they need another one.
        prompt_templates: further templates. The example's id selects one of them or ``template``.
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
        """The prompt, which the model continues.

        Raises:
            ImpRAGError: the template needs a text that is not in the example's ``meta``.
        """
        plain = self.plain_template and "[SEP]" not in example.input
        template = self.plain_template if plain else self._template(example)
        texts = {**example.meta, "input": example.input}
        for _, name, _, _ in string.Formatter().parse(template):
            if name and not isinstance(texts.get(name), str):
                raise ImpRAGError(
                    f"example '{example.id}' has no text '{name}' in its meta, "
                    f"which the template of task '{self.name}' needs"
                )
        return template.format_map(texts)

    def _template(self, example: Example) -> str:
        if not self.prompt_templates:
            return self.template
        return random.Random(example.id).choice((self.template, *self.prompt_templates))

    def response(self, example: Example) -> str:
        """The text that the model should generate: a space and the first answer.

        Raises:
            ImpRAGError: only passages are known, as in BEIR's data sets.
        """
        if not example.answers:
            raise ImpRAGError(
                f"example '{example.id}' of task '{self.name}' has no answer to learn; use it for "
                "retrieval alone"
            )
        return f" {example.answers[0]}"

    def read(self, source: str | Path, split: str | None = None) -> Iterator[Example]:
        """Yield the examples of a file, official or in KILT's or FlashRAG's form, or BEIR's folder.

        Examples that name another task are skipped.

        Args:
            source: as for `read_records`, or a folder in BEIR's form.
            split: of a dataset, ``validation`` if not given; of BEIR's folder, ``test``.

        Raises:
            ImpRAGError: the file is missing, has another format, or holds no example of the task.
        """
        others = set()
        found = False
        for example in self._examples(source, split):
            if example.task in ("", self.name):
                found = True
                example = replace(example, task=self.name)
                yield self.normalize(example) if self.normalize else example
            else:
                others.add(example.task)
        if not found:
            held = f"; it holds {', '.join(sorted(others))}" if others else ""
            raise ImpRAGError(f"{source} holds no example of task '{self.name}'{held}")

    def _examples(self, source: str | Path, split: str | None) -> Iterator[Example]:
        if beir_queries(folder := expand_home(source)):
            return read_beir(folder, split)
        records = read_records(source, split or "validation")
        first = next(records, None)
        if first is None:
            raise ImpRAGError(f"{source} is empty; expected examples of task '{self.name}'")
        reader = self.reader
        if first.keys() >= FLASHRAG_FIELDS:
            reader = read_flashrag
        elif reader is None or {"input", "output"} <= first.keys():
            reader = read_kilt
        return reader(itertools.chain([first], records))


def read_kilt(records: Iterable[Record]) -> Iterator[Example]:
    """The reader of KILT's form, which is also ImpRAG's own."""
    return map(Example.from_record, records)


class TaskRegistry(Registry[Task]):
    """Tasks by their own names; an entry point offers one task or a sequence of them."""

    def find(self, name: str) -> Task:
        if name not in self._registered and name not in self.names():
            raise self.unknown(name)
        return self._registered[name]

    def names(self) -> list[str]:
        for offered in plugins(self.group).values():
            for task in [offered] if isinstance(offered, Task) else offered:
                self.register(task.name)(task)
        return sorted(self._registered)


#: Tasks by name. Packages offer them under the entry-point group ``imprag.tasks``.
TASKS = TaskRegistry("task", "imprag.tasks", {})


def register_task(task: Task) -> Task:
    """Register a task under its name, for `load_task`.

    Raises:
        ImpRAGError: another task has the name.
    """
    return TASKS.register(task.name)(task)


def load_task(name: str) -> Task:
    """The task of that name.

    Raises:
        ImpRAGError: there is no such task; the message lists the known ones.
    """
    return TASKS.find(name)


def task_names() -> list[str]:
    """The sorted names of all registered tasks, including those that installed packages offer."""
    return TASKS.names()
