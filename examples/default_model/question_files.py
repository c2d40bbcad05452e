"""The command line of scripts that make files of questions."""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from imprag.errors import ImpRAGError
from imprag.tasks import Example, write_examples


def question_parser(description: str, drawn: str, **read: str) -> argparse.ArgumentParser:
    """A parser of the arguments that all such scripts have.

    Args:
        description: what the script does.
        drawn: what the seed draws.
        read: the argument that names what the script reads, with its help.
    """
    parser = argparse.ArgumentParser(description=description)
    for name, text in read.items():
        parser.add_argument(name, help=text)
    parser.add_argument("--out", type=Path, required=True, help="the file to make, JSONL")
    parser.add_argument("--seed", type=int, default=0, help=f"draws {drawn}")
    return parser


def make_file(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    make: Callable[[argparse.Namespace], Iterable[Example]],
) -> None:
    """Write the questions that the command line asks for; print the count as JSON."""
    asked = parser.parse_args(arguments)
    if asked.out.exists():
        parser.error(f"{asked.out} exists already; delete it or choose another name")
    try:
        made = list(make(asked))
        write_examples(asked.out, made)
    except ImpRAGError as error:
        parser.error(str(error))
    print(json.dumps({"questions": len(made)}))
