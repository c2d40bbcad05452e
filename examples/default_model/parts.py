"""Questions about the parts of a value (beyond the paper).

A Factbook field often says two things at once: "China 477 km", "male 10,815/female 10,747". Each
question asks for one of them, by the other: the length of the border with China, or the country
whose border is 477 km long. A reader that never had to choose answers with the whole line.

    python examples/default_model/parts.py default --leave-out factbook-bench --out parts.jsonl
"""

import argparse
import random
import re
from collections import Counter
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

_NAME = r"(?P<name>[A-Z][^,;:()\d]*?)"
_NUMBER = r"\d(?:[\d,.]*\d)?"
_SHARE = r"[\d.]+%(?: \([^)]*\))? "  # and perhaps its year
_SINCE = rf"(?:President|(?:Prime|First) Minister|King|Queen) {_NAME} \(since (?P<value>[^);]+)\)"


class Field(NamedTuple):
    """A field whose parts are pairs of a name and a value.

    Attributes:
        label: what the field's line begins with.
        part: a pattern with the groups ``name`` and ``value``.
        values: questions for the value; {X} is the country, {N} the name.
        names: questions for the name; {V} is the value.
        ranks: questions for the name that stands at rank {R}, where parts are sorted by size.
        greatest: what the name and the value of the part with the greatest value are called.
    """

    label: str
    part: str
    values: Sequence[str]
    names: Sequence[str] = ()
    ranks: Sequence[str] = ()
    greatest: tuple[str, str] | None = None


def _shares(label: str, of: str, who: str, names: str, ranks: str, one: str) -> Field:
    """A field with a list of names and percentages."""
    values = (
        f"What share of {of} {who}?",
        f"What percentage of {of} {who}?",
        f"{{X}}, {label.lower()}: how much is {{N}}?",
    )
    part = rf"(?:^|, |: ){_NAME} (?P<value>[\d.]+%)"
    names_too = (names, f"{{X}}, {label.lower()}: what is {{V}}?")
    return Field(label, part, values, names_too, (ranks,), (one, f"share of the {one}"))


FIELDS = (
    Field(
        "Land boundaries",
        rf"(?:: |; ){_NAME} (?P<value>{_NUMBER} km)",
        (
            "How long is the border between {X} and {N}?",
            "What is the length of {X}'s border with {N}?",
            "{X} border with {N}, length",
        ),
        (
            "Which country shares a border of {V} with {X}?",
            "With which neighbor does {X} have a border of {V}?",
        ),
        greatest=("neighbor with the longest border", "length of the longest border"),
    ),
    Field(
        "Major rivers (by length in km)",
        rf"(?:: |; ){_NAME}(?: river (?:source|mouth))?(?: \([^)]*\))* - (?P<value>{_NUMBER} km)",
        ("How long is the river {N} in {X}?", "What is the length of {X}'s river {N}?"),
        ("Which river of {X} has a length of {V}?", "What river in {X} is {V} long?"),
        greatest=("longest river", "length of the longest river"),
    ),
    Field(
        "Major lakes (area sq km)",
        rf"(?:: |; ){_NAME}(?: \([^)]*\))* - (?P<value>{_NUMBER} sq km)",
        ("How large is {N} in {X}?", "What area does {X}'s {N} cover?"),
        ("Which lake in {X} has an area of {V}?", "What lake of {X} covers {V}?"),
        greatest=("largest lake", "area of the largest lake"),
    ),
    Field(
        "Major watersheds (area sq km)",
        rf"(?:: |; |\) ){_NAME} \((?P<value>{_NUMBER} sq km)\)",
        ("How large is the watershed of the {N} in {X}?", "{N} watershed of {X}: what area?"),
        ("Which watershed of {X} has an area of {V}?",),
        greatest=("largest watershed", "area of the largest watershed"),
    ),
    Field(
        "Major urban areas - population",
        rf"(?P<value>{_NUMBER}(?: million)?) (?P<name>[A-Z][^,;:()\d]*[^,;:()\d ])",
        (
            "How many people live in the city of {N} in {X}?",
            "How many inhabitants has {N}, {X}?",
            "What is the size of the urban area of {N} in {X}, in people?",
        ),
        (
            "Which city in {X} has {V} inhabitants?",
            "In which urban area of {X} do {V} people live?",
        ),
        ("Which city is number {R} of the largest in {X}?",),
        greatest=("most populous city", "population of the most populous city"),
    ),
    _shares(
        "Ethnic groups",
        "{X}'s people",
        "are {N}",
        "Which ethnic group makes up {V} of {X}'s population?",
        "Which is the {R} largest ethnic group in {X}?",
        "largest ethnic group",
    ),
    _shares(
        "Religions",
        "the population of {X}",
        "is {N}",
        "Which religion do {V} of the people in {X} belong to?",
        "Which religion has the {R} most followers in {X}?",
        "most common religion",
    ),
    _shares(
        "Languages",
        "{X}'s people",
        "speak {N}",
        "Which language do {V} of the people in {X} speak?",
        "Which language is the {R} most spoken in {X}?",
        "most spoken language",
    ),
    _shares(
        "Exports - partners",
        "{X}'s exports",
        "goes to {N}",
        "Which country takes {V} of {X}'s exports?",
        "Which is the {R} largest export partner of {X}?",
        "largest buyer of exports",
    ),
    _shares(
        "Imports - partners",
        "{X}'s imports",
        "comes from {N}",
        "Which country supplies {V} of {X}'s imports?",
        "Which is the {R} largest import partner of {X}?",
        "largest supplier of imports",
    ),
    Field(
        "Merchant marine",
        rf"(?:by type: |, )(?P<name>[a-z][a-z/ ]*[a-z]) (?P<value>{_NUMBER})",
        (
            "How many ships of the type {N} does {X} have?",
            "{X} merchant marine: number of ships of the type {N}?",
        ),
        ("Of which type are {V} ships of {X}'s merchant marine?",),
        greatest=("most common type of merchant ship", "number of ships of the most common type"),
    ),
    Field(
        "Age structure",
        r"(?P<name>\d+-\d+ years|65 years and over): (?P<value>[\d.]+%)",
        ("What share of {X}'s people are {N} old?", "{X}: what percentage is {N} old?"),
        ("Which age group makes up {V} of {X}'s people?",),
    ),
    *(
        Field(
            "Age structure",
            rf"(?P<name>\d+-\d+ years|65 years and over): {_SHARE}{before}(?P<value>{_NUMBER})",
            (f"How many {sex} in {{X}} are {{N}} old?", f"{{X}}, {sex} of {{N}}: how many?"),
            (f"How old are {{V}} {sex} in {{X}}?",),
        )
        for sex, before in (("males", r"\(male "), ("females", r"\(male [\d,]+/female "))
    ),
    *(
        Field(
            label,
            rf"(?:; |: )(?P<name>{sex}): (?P<value>[^;(]*[^;( ])",
            (f"What is the {said} of the {sex} population in {{X}}?", f"{{X}}, {said}: {sex}?"),
        )
        for label, said in (
            ("Median age", "median age"),
            ("Life expectancy at birth", "life expectancy"),
            ("Literacy", "literacy rate"),
            ("Tobacco use", "share of tobacco users"),
            ("School life expectancy (primary to tertiary education)", "school life expectancy"),
            ("Youth unemployment rate (ages 15-24)", "youth unemployment rate"),
        )
        for sex in ("male", "female")
    ),
    Field(
        "Diplomatic representation in the US",
        rf"Ambassador {_NAME} \(since (?P<value>[^);]+)\)",
        ("Since when has {N} been ambassador of {X} in the US?", "{X}: ambassador {N} since when?"),
        ("Who is the ambassador of {X} to the US?", "Who represents {X} in Washington?"),
    ),
    *(
        Field(
            "Executive branch",
            rf"{office}: {_SINCE}",
            (
                f"Since when has {{N}} been {office} of {{X}}?",
                f"When did {{X}}'s {office}, {{N}}, take office?",
            ),
            (f"Who has been {{X}}'s {office} since {{V}}?",),
        )
        for office in ("chief of state", "head of government")
    ),
    Field(
        "National holiday",
        r"^[^:]+: (?P<name>[A-Z][^,;(]*Day), \d+ [A-Z]\w+ \((?P<value>\d{4})\)",
        ("To which year does {N} in {X} go back?", "Which year does {X}'s {N} commemorate?"),
        ("Which national holiday of {X} goes back to {V}?",),
    ),
    Field(
        "Exchange rates",
        rf"(?P<name>20\d\d): (?P<value>{_NUMBER})",
        ("What was {X}'s exchange rate to the US dollar in {N}?", "{X} exchange rate {N}"),
        ("In which year did a US dollar cost {V} of {X}'s currency?",),
    ),
    Field(
        "Maritime claims",
        r"(?P<name>[a-z][a-z ]+[a-z]): (?P<value>[\d.]+ nm)",
        ("How wide is the {N} of {X}?", "{X} maritime claims: {N}?"),
        ("Which zone of {X} reaches as far as {V}?",),
    ),
    Field(
        "Railways",
        rf"(?P<name>(?:standard|narrow|broad) gauge): (?P<value>{_NUMBER} km)",
        ("How many kilometers of {X}'s railways have {N}?", "{X}: length of railways with {N}"),
        ("Which gauge have {V} of {X}'s railways?",),
    ),
)
_NOUNS = (
    "What is the {noun} of {X}?",
    "What is {X}'s {noun}?",
    "{X}: {noun}",
    "{X} {noun}",
    "{noun} of {X}",
)
_RANKS = ("second", "third", "fourth")


def parts(passages: Iterable[Passage], seed: int = 0, each: int = 4) -> Iterator[Example]:
    """Up to `each` questions for each field of a passage.

    Args:
        passages: of the Factbook, or such as `rename.py` makes.
        seed: draws the questions and their wordings.
        each: greatest number of questions for one field.
    """
    for passage in passages:
        country, _, section = passage.title.rpartition(", ")
        for number, field in enumerate(FIELDS if section else ()):
            generator = random.Random(f"{seed} parts {passage.id} {number}")
            asked = sorted(set(_questions(passage.text, field, country, generator)))
            for text, answer in generator.sample(asked, min(each, len(asked))):
                yield Example(
                    f"parts-{passage.id}/{number}/{asked.index((text, answer))}",
                    text,
                    [Answer(answer, [{"passage_id": passage.id}])],
                    {"country": country, "relation": field.label, "group": [country, field.label]},
                )


def _questions(
    text: str, field: Field, country: str, generator: random.Random
) -> Iterator[tuple[str, str]]:
    """All parts of a field that can be asked for, each in one wording, with their answers."""
    for line in text.splitlines():
        if not line.startswith(f"{field.label}: "):
            continue
        line = line.partition("; note: ")[0]
        found = [(one["name"], one["value"]) for one in re.finditer(field.part, line)]
        names = Counter(name for name, _ in found)
        values = Counter(value for _, value in found)
        for rank, (name, value) in enumerate(found):
            said = {"X": country, "N": _readable(name), "V": value}
            if names[name] == 1:
                yield generator.choice(field.values).format(**said), value
            if field.names and values[value] == 1:
                yield generator.choice(field.names).format(**said), _readable(name)
            if field.ranks and 0 < rank <= len(_RANKS):
                said["R"] = _RANKS[rank - 1]
                yield generator.choice(field.ranks).format(**said), _readable(name)
        if field.greatest and found:
            yield from _greatest(field.greatest, found, country, generator)


def _greatest(
    called: tuple[str, str],
    found: Sequence[tuple[str, str]],
    country: str,
    generator: random.Random,
) -> Iterator[tuple[str, str]]:
    """Questions for the name and the value of the part with the greatest value."""
    sizes = sorted((_size(value), name, value) for name, value in found)
    alone = len(sizes) == 1 or sizes[-1][0] > sizes[-2][0]
    if not alone or sizes[-1][1] == "other":
        return
    _, name, value = sizes[-1]
    for noun, answer in zip(called, (_readable(name), value), strict=True):
        yield generator.choice(_NOUNS).format(noun=noun, X=country), answer


def _size(value: str) -> float:
    number = float(re.sub(r"[^\d.]", "", value).rstrip(".") or 0)
    return number * 1e6 if "million" in value else number


def _readable(name: str) -> str:
    """A name in the usual letters: "Abu Dhabi" for "ABU DHABI", but "UAE"."""
    return name if len(name) <= len("UAE") else in_small_letters(name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the file that the command line asks for."""
    parser = question_parser(
        "Make questions about the parts of values from passages of the Factbook.",
        "questions and their wordings",
        corpus="passages of the Factbook, as for imprag index",
    )
    add_leave_out(parser)
    add_limit(parser)
    make_file(parser, arguments, made)


def made(asked: argparse.Namespace) -> Iterable[Example]:
    """The questions that the command line asks for."""
    return limited(list(parts(trained_passages(asked), asked.seed)), asked)


if __name__ == "__main__":
    main()
