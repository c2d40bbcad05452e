"""Questions of two hops, made from the fields of passages (beyond the paper).

A question names its country by another field: "What is the elevation of the country whose capital
is Kathmandu?". Its answer has two passages, that of the other field first, and ``meta`` holds the
country as ``bridge_answer``, as ``positives: hops`` of a recipe wants it.

    python examples/default_model/two_hops.py default --limit 20000 --out two-hops.jsonl
"""

import argparse
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from question_files import make_file, question_parser

from imprag.corpus import Passage, load_corpus
from imprag.tasks import Answer, Example
from imprag.tasks.self_supervised import question

#: What a country is called by, and how: the relation of a field, and forms of the description.
BRIDGES = {
    "Capital, name": ("the {kind} whose capital is {value}",),
    "Internet country code": ("the {kind} with the internet country code {value}",),
    "Executive branch, head of government": ("the {kind} whose head of government is {value}",),
    "Executive branch, chief of state": ("the {kind} whose chief of state is {value}",),
    "Civil aircraft registration country code prefix": (
        "the {kind} whose aircraft carry the registration prefix {value}",
    ),
}
KINDS = ("country", "country", "country", "territory")
_TITLES = re.compile(
    r"^(?:(?:Acting|Interim|Transitional|Prime|First|Chief) )*"
    r"(?:President|Minister|King|Queen|Premier|Governor(?: General)?|Chancellor|Sultan|Emir) "
)


class Fact(NamedTuple):
    """A field: its country and relation, its value, and the question that asks for it."""

    country: str
    relation: str
    value: str
    passage: str
    question: str


def two_hops(passages: Iterable[Passage], seed: int = 0) -> Iterator[Example]:
    """One question for each field of a country that another field names and no other country's.

    Args:
        passages: with ``meta["fields"]``, such as those of the Factbook.
        seed: draws the field that names the country and the form of the question.
    """
    facts = [_fact(one) for one in question(passages, seed)]
    countries: dict[tuple[str, str], set[str]] = defaultdict(set)
    bridges: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        countries[fact.relation, fact.value].add(fact.country)
    for fact in facts:
        if fact.relation in BRIDGES and len(countries[fact.relation, fact.value]) == 1:
            bridges[fact.country].append(fact)
    for fact in facts:
        generator = random.Random(f"{seed} two hops {fact.passage} {fact.relation}")
        named = [one for one in bridges[fact.country] if one.passage != fact.passage]
        if not named or fact.question.count(fact.country) != 1:
            continue
        bridge = generator.choice(named)
        said = generator.choice(BRIDGES[bridge.relation]).format(
            kind=generator.choice(KINDS), value=_shown(bridge.value)
        )
        yield Example(
            f"two-hops-{fact.passage}/{fact.relation}",
            fact.question.replace(fact.country, said),
            [Answer(fact.value, [{"passage_id": one.passage} for one in (bridge, fact)])],
            {
                "bridge_answer": fact.country,
                "bridge": bridge.relation,
                "group": [fact.country, fact.relation],
            },
        )


def _fact(example: Example) -> Fact:
    country, relation = example.meta["group"]
    (answer,) = example.output
    (passage,) = example.gold_ids
    return Fact(country, relation, answer.answer, passage, example.input)


def _shown(value: str) -> str:
    """A name as people write it: "Nayib Armando Bukele Ortez" for "President ... BUKELE Ortez"."""
    value = _TITLES.sub("", value)
    words = [word.title() if word.isupper() and len(word) > 3 else word for word in value.split()]
    return " ".join(words).partition(" (")[0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the file that the command line asks for."""
    parser = question_parser(
        "Make questions of two hops from passages.",
        "questions and their forms",
        corpus="passages with fields, as for imprag index",
    )
    parser.add_argument("--limit", type=int, help="greatest number of questions; all if not given")
    make_file(parser, arguments, made)


def made(asked: argparse.Namespace) -> Iterator[Example]:
    """The questions that the command line asks for."""
    examples = list(two_hops(load_corpus(asked.corpus), asked.seed))
    if asked.limit is not None and asked.limit < len(examples):
        examples = random.Random(asked.seed).sample(examples, asked.limit)
    return iter(examples)


if __name__ == "__main__":
    main()
