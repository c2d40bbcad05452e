"""The command line of scripts that make files of questions."""

import argparse
import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from imprag.corpus import Passage, load_corpus
from imprag.errors import ImpRAGError
from imprag.tasks import Example, write_examples
from imprag.training.data import not_held_out


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


def add_leave_out(parser: argparse.ArgumentParser) -> None:
    """Let the command line name a benchmark whose held-out countries give no questions."""
    parser.add_argument(
        "--leave-out", metavar="BENCHMARK", help="leave out countries of its splits dev and test"
    )


def trained_passages(asked: argparse.Namespace) -> Iterable[Passage]:
    """The passages of the corpus that the command line names, less those it leaves out.

    Raises:
        ImpRAGError: nothing is left out.
    """
    corpus = load_corpus(asked.corpus)
    if asked.leave_out is None:
        return corpus
    passages = list(filter(not_held_out({asked.leave_out: {"train"}}), corpus))
    if len(passages) == len(corpus):
        raise ImpRAGError(f"{asked.leave_out} holds out no country of {asked.corpus}")
    return passages


def in_small_letters(name: str) -> str:
    """A name in the usual letters; the Factbook has surnames in capitals ("Idriss DEBY")."""
    return re.sub(r"[^\W\d_]{2,}", lambda word: _lowered(word[0]), name)


def _lowered(word: str) -> str:
    return word.capitalize() if word.isupper() else word


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
