"""The command line of scripts that make files of questions."""

import argparse
import json
import random
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


def add_limit(parser: argparse.ArgumentParser) -> None:
    """Let the command line say how many questions are made; see `limited`."""
    text = "greatest number of questions; all if not given"
    parser.add_argument("--limit", type=_positive, help=text)


def limited(examples: Sequence[Example], asked: argparse.Namespace) -> Sequence[Example]:
    """As many of the examples as the command line allows, drawn by its seed."""
    if asked.limit is None or asked.limit >= len(examples):
        return examples
    return random.Random(asked.seed).sample(examples, asked.limit)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


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
        if not made:
            parser.error("no question can be made of this")
        write_examples(asked.out, made)
    except ImpRAGError as error:
        parser.error(str(error))
    print(json.dumps({"questions": len(made)}))
