"""The benchmark's relations: their fields in the Factbook and the templates that ask for them."""

import tomllib
from dataclasses import dataclass
from importlib import resources

from imprag.benchmarks.factbook.names import Country
from imprag.benchmarks.factbook.values import READERS, Reader


@dataclass(frozen=True)
class Relation:
    """A relation between a country and a short value. ``relations.toml`` explains the fields."""

    name: str
    field: str
    values: Reader
    questions: tuple[str, ...]
    statements: tuple[str, ...]
    bridge: str = ""
    partner: str = ""


def load_relations() -> list[Relation]:
    """All relations, in the order of ``relations.toml``."""
    source = resources.files("imprag.benchmarks.factbook") / "relations.toml"
    tables = tomllib.loads(source.read_text(encoding="utf-8"))["relation"]
    return [
        Relation(
            **{
                **table,
                "values": READERS[table["values"]],
                "questions": tuple(table["questions"]),
                "statements": tuple(table["statements"]),
            }
        )
        for table in tables
    ]


def fill(template: str, country: Country, value: str = "") -> str:
    """A question or statement about a country, with its first letter made a capital."""
    text = template.replace("{X's}", country.possessive).replace("{X}", country.in_sentence)
    text = text.replace("{V}", value)
    return text[:1].upper() + text[1:]
