"""Reads tasks with their examples from a benchmark folder, a file or an official dataset."""

import hashlib
import json
import random
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imprag.corpus import Corpus
from imprag.corpus.questions import beir_queries
from imprag.errors import ImpRAGError
from imprag.io.files import expand_home
from imprag.tasks.benchmark import load_benchmark
from imprag.tasks.example import Example, read_examples
from imprag.tasks.records import read_records
from imprag.tasks.task import Task, load_task


@dataclass(frozen=True)
class TaskExamples:
    """A task and its examples.

    Attributes:
        task: the task, which has the prompt template and the metric.
        examples: the examples, at least one, with distinct ids.
        source: the origin of the examples, in words.
    """

    task: Task
    examples: Sequence[Example]
    source: str

    def __post_init__(self) -> None:
        if not self.examples:
            raise ImpRAGError(f"task '{self.task.name}' has no examples in {self.source}")
        seen: set[str] = set()
        for example in self.examples:
            if example.id in seen:
                raise ImpRAGError(
                    f"{self.source}: the id '{example.id}' occurs twice in task "
                    f"'{self.task.name}'; give every example its own id"
                )
            seen.add(example.id)

    def draw(self, limit: int | None, seed: int) -> "TaskExamples":
        """At most ``limit`` examples, sampled by the seed and the task's name, in their order."""
        if limit is None or limit >= len(self.examples):
            return self
        generator = random.Random(f"{seed} {self.task.name}")
        rows = sorted(generator.sample(range(len(self.examples)), limit))
        return replace(self, examples=[self.examples[row] for row in rows])

    def gold_rows(self, corpus: Corpus) -> list[list[int]]:
        """The corpus rows of every example's gold passages.

        Raises:
            ImpRAGError: a gold passage is not in the corpus.
        """
        gold = [example.gold_ids for example in self.examples]
        distinct = list(dict.fromkeys(passage_id for ids in gold for passage_id in ids))
        row_of = dict(zip(distinct, corpus.find(distinct), strict=True))
        for example, ids in zip(self.examples, gold, strict=True):
            if unknown := [passage_id for passage_id in ids if row_of[passage_id] is None]:
                raise ImpRAGError(
                    f"{self.source}, task '{self.task.name}': example '{example.id}' names the "
                    f"gold passage '{unknown[0]}', which the corpus "
                    f"{corpus.manifest['source'] or corpus.path} does not have; choose the corpus "
                    "that the examples are about, or link them to this one with imprag tasks import"
                )
        return [[row for id in ids if (row := row_of[id]) is not None] for ids in gold]

    def fingerprint(self) -> str:
        """A hash of all prompts and examples, without ``meta["group"]``."""
        digest = hashlib.sha256()
        for example in self.examples:
            meta = {name: value for name, value in example.meta.items() if name != "group"}
            content = [self.task.prompt(example), {**example.to_json(), "meta": meta}]
            digest.update(json.dumps(content, sort_keys=True).encode())
        return digest.hexdigest()[:16]


def read_tasks(
    names: Sequence[str] = (), *, data: Path | str | None = None, split: str | None = None
) -> list[TaskExamples]:
    """The tasks and examples to evaluate or train on.

    Args:
        names: the tasks. By default, all tasks of the benchmark in ``data`` that retrieve passages
            and have the split. Each name is one of

            - a task of that benchmark;
            - ``FILE``: examples in KILT's form that name their tasks, all of which are read;
            - ``TASK=FILE``: a task's official file, or one in KILT's form or FlashRAG's. Instead of
              a file, it may be a folder in BEIR's form, ``beir=scifact``, or a dataset on the
              Hugging Face hub: ``nq=google-research-datasets/nq_open``.
        data: a benchmark folder, such as one made by ``imprag tasks build``.
        split: the split to read. By default ``test`` of a benchmark or of BEIR's folder, and
            ``validation`` of a dataset on the hub.

    Raises:
        ImpRAGError: there is no such task, file or split, or a file has another format.
    """
    benchmark = {} if data is None else load_benchmark(data)
    files = {
        name: {
            split: expand_home(data or "") / entry["file"]
            for split, entry in task["splits"].items()
        }
        for name, task in benchmark.get("tasks", {}).items()
    }
    names = names or _with_split(files, split or "test")
    if not names:
        raise ImpRAGError("no tasks; name some with --tasks, or a benchmark folder with --data")
    found: list[TaskExamples] = []
    for name in names:
        if name in files:
            found.append(_of_benchmark(benchmark, name, files[name], split or "test"))
        else:
            found += _of_file(name, split, files)
    return found


def _with_split(files: Mapping[str, Mapping[str, Path]], split: str) -> list[str]:
    """The tasks of a benchmark that retrieve passages and have the split.

    A note on standard error names the others. If no task has the split, all are returned, so that
    the error of reading them lists their splits.
    """
    names = [name for name in files if load_task(name).retrieval]
    having = [name for name in names if split in files[name]]
    if having and len(having) < len(names):
        others = ", ".join(name for name in names if name not in having)
        print(f"note: skipped {others}: no split '{split}'", file=sys.stderr)
    return having or names


def _of_benchmark(
    benchmark: Mapping[str, Any], name: str, files: Mapping[str, Path], split: str
) -> TaskExamples:
    if split not in files:
        raise ImpRAGError(f"task '{name}' has no split '{split}'; it has {', '.join(files)}")
    place = f"{benchmark['name']} {benchmark['version']}, seed {benchmark['seed']}, {split}"
    task = load_task(name)
    return TaskExamples(task, list(task.read(files[split])), place)


def _of_file(name: str, split: str | None, known: Iterable[str]) -> Iterator[TaskExamples]:
    task, equals, source = name.partition("=")
    if equals:
        found = load_task(task)
        yield TaskExamples(found, list(found.read(source, split)), source)
    elif (path := expand_home(name)).is_file():
        yield from _by_task(path)
    elif beir_queries(path):
        raise ImpRAGError(f"{name} is a folder in BEIR's form: give it as --tasks beir={name}")
    else:
        of_data = f"; the benchmark has {', '.join(known)}" if known else ""
        raise ImpRAGError(
            f"no task or file '{name}'{of_data}; give a task of --data, a file of examples that "
            "name their tasks, or TASK=FILE"
        )


def _by_task(path: Path) -> Iterator[TaskExamples]:
    first = next(read_records(path), None)
    if first is not None and not {"input", "output"} & first.keys():
        raise ImpRAGError(
            f"{path} is not in KILT's form, whose examples name their tasks; if it is a task's "
            f"official file, or one of FlashRAG, give it as --tasks TASK={path}"
        )
    examples: dict[str, list[Example]] = defaultdict(list)
    for example in read_examples(path):
        if not example.task:
            raise ImpRAGError(
                f"{path}: example '{example.id}' names no task; give it as --tasks TASK={path}"
            )
        examples[example.task].append(example)
    for name, group in examples.items():
        task = load_task(name)
        group = [task.normalize(example) if task.normalize else example for example in group]
        yield TaskExamples(task, group, str(path))
