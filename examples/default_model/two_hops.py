"""Questions of two hops, made from the fields of passages (beyond the paper).

A question names its country by another field: "What is the elevation of the country whose capital
is Kathmandu?". Its answer has two passages, that of the other field first, and ``meta`` holds the
country as ``bridge_answer``, as ``positives: hops`` of a recipe wants it. Of passages that
`rename.py` made, the bridge has to be read: each of their countries has many names.

    python examples/default_model/two_hops.py default --leave-out factbook-bench --out hops.jsonl
"""

import argparse
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from question_files import (
    add_leave_out,
    add_limit,
    in_small_letters,
    limited,
    make_file,
    question_parser,
    trained_passages,
)

from imprag.corpus import Passage
from imprag.tasks import Answer, Example
from imprag.tasks.self_supervised import question

#: By what a country is named: a field's relation, the pattern of fitting values, and the words.
BRIDGES = {
    "Capital, name": (r"\D+", "the {kind} whose capital is {value}"),
    "Internet country code": (r"\.\w+", "the {kind} with the internet country code {value}"),
    "Civil aircraft registration country code prefix": (
        r"[A-Z0-9-]{1,5}",
        "the {kind} whose aircraft carry the registration prefix {value}",
    ),
    "Executive branch, head of government": (
        r"\D+",
        "the {kind} whose head of government is {value}",
    ),
    "Executive branch, chief of state": (r"\D+", "the {kind} whose chief of state is {value}"),
}
KINDS = ("country", "country", "country", "territory")
_TITLES = re.compile(
    r"^(?:(?:Acting|Interim|Transitional|Prime|First|Chief|Deputy) )*"
    r"(?:President|Minister|King|Queen|Premier|Governor(?: General)?|Chancellor|Sultan|Emir)"
    r"(?: of (?:State|the [A-Z]\w+(?: [A-Z]\w+)*))? (?=[A-Z])"
)


class Fact(NamedTuple):
    """A field: its country and relation, its value, and the question that asks for it."""

    country: str
    relation: str
    value: str
    passage: str
    question: str

    @property
    def copy(self) -> str:
        """Where the value has to tell countries apart: a copy of `rename.py`, or the corpus."""
        found = re.match(r"renamed-\d+/", self.passage)
        return found[0] if found else ""


def two_hops(passages: Iterable[Passage], seed: int = 0) -> Iterator[Example]:
    """One question for each field of a country that another field names and no other country's.

    Args:
        passages: with ``meta["fields"]``, such as those of the Factbook.
        seed: draws the field that names the country and the form of the question.
    """
    facts = [_fact(one) for one in question(passages, seed)]
    countries: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    bridges: dict[tuple[str, str], list[Fact]] = defaultdict(list)
    for fact in facts:
        countries[fact.copy, fact.relation, fact.value].add(fact.country)
    for fact in facts:
        pattern, _ = BRIDGES.get(fact.relation, ("", ""))
        fits = bool(pattern and re.fullmatch(pattern, fact.value))
        unique = len(countries[fact.copy, fact.relation, fact.value]) == 1
        if fits and unique and fact.country not in fact.value:
            bridges[fact.copy, fact.country].append(fact)
    for fact in facts:
        generator = random.Random(f"{seed} two hops {fact.passage} {fact.relation}")
        named = [one for one in bridges[fact.copy, fact.country] if one.passage != fact.passage]
        if not named or fact.question.count(fact.country) != 1:
            continue
        bridge = generator.choice(named)
        said = BRIDGES[bridge.relation][1].format(
            kind=generator.choice(KINDS), value=_shown(bridge)
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


def each_hop(examples: Iterable[Example], separator: str) -> Iterator[Example]:
    """Both queries of every question as questions of one hop, to fit the query projection to.

    Args:
        examples: of `two_hops`.
        separator: what the model retrieves again at.
    """
    for one in examples:
        (answer,) = one.output
        hops = one.hops
        assert hops is not None
        named = hops.named(one.input, separator)
        for hop, text, gold in ((1, one.input, hops.first), (2, named, hops.second)):
            references = [{"passage_id": id} for id in gold]
            yield Example(f"{one.id}/{hop}", text, [Answer(answer.answer, references)], {})


def _fact(example: Example) -> Fact:
    country, relation = example.meta["group"]
    (answer,) = example.output
    (passage,) = example.gold_ids
    return Fact(country, relation, answer.answer, passage, example.input)


def _shown(bridge: Fact) -> str:
    """A name as people write it: "Nayib Armando Bukele Ortez" for "President ... BUKELE Ortez"."""
    if not bridge.relation.startswith("Executive"):
        return bridge.value
    name = _TITLES.sub("", bridge.value).partition(" (")[0]
    return in_small_letters(name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the file that the command line asks for."""
    parser = question_parser(
        "Make questions of two hops from passages.",
        "questions and their forms",
        corpus="passages with fields, as for imprag index",
    )
    add_leave_out(parser)
    parser.add_argument(
        "--each-hop",
        metavar="SEPARATOR",
        help="make two of each question: as it is, and continued up to SEPARATOR, for adapt",
    )
    add_limit(parser)
    make_file(parser, arguments, made)


def made(asked: argparse.Namespace) -> Iterable[Example]:
    """The questions that the command line asks for."""
    questions = list(two_hops(trained_passages(asked), asked.seed))
    if asked.each_hop is not None:
        questions = list(each_hop(questions, asked.each_hop))
    return limited(questions, asked)


if __name__ == "__main__":
    main()
