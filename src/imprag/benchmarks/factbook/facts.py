"""Facts: a country, a relation, the forms of the value, and the passages that state it."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from imprag.benchmarks.factbook.names import Country
from imprag.benchmarks.factbook.relations import Relation
from imprag.benchmarks.factbook.values import former_ruler, largest_partner
from imprag.corpus import Fact, Passage
from imprag.tasks.matching import contains_answer


@dataclass(frozen=True)
class KnownFact:
    """A value of a relation that a passage states.

    Attributes:
        country: the country that the fact is about.
        relation: the relation, such as ``capital``.
        answers: all forms of the value, the best first.
        gold: ids of the passages that state the value under the label of the relation's field.
        partner: the country that the value names, if it names one.
    """

    country: Country
    relation: Relation
    answers: tuple[str, ...]
    gold: tuple[str, ...]
    partner: Country | None = None

    @property
    def shown(self) -> str:
        """The value as written in a sentence."""
        return self.partner.in_sentence if self.partner else self.answers[0]


def known_facts(
    entries: Iterable[Fact],
    passages: Iterable[Passage],
    countries: dict[str, Country],
    relations: Iterable[Relation],
) -> Iterator[KnownFact]:
    """Yield the facts of all relations that have a short value and a passage that states it."""
    texts: dict[tuple[str, str], str] = {}
    for entry in entries:
        texts.setdefault((entry.code, entry.label), entry.text)
    stating = defaultdict(list)
    for passage in passages:
        for label in passage.meta.get("fields", ()):
            stating[passage.meta["code"], label].append(passage)
    by_name = {name: country for country in countries.values() for name in country.names}
    for relation in relations:
        for country in countries.values():
            answers = relation.values(texts.get((country.code, relation.field), ""))
            partner = by_name.get(answers[-1]) if answers and _is_country(relation) else None
            if partner:
                answers = list(dict.fromkeys([*answers, *partner.names]))
            gold = tuple(
                passage.id
                for passage in stating[country.code, relation.field]
                if contains_answer(_statement(passage.text, relation.field), answers)
            )
            if gold and answers[0].casefold() != country.name.casefold():
                yield KnownFact(country, relation, tuple(answers), gold, partner)


def _is_country(relation: Relation) -> bool:
    return relation.values in (largest_partner, former_ruler)


def _statement(text: str, label: str) -> str:
    """The rest of the line after a field's label in a passage's text; empty if there is none."""
    field, _, subfield = label.partition(": ")
    for line in text.splitlines():
        if line.startswith(f"{field}: "):
            statement = line.removeprefix(f"{field}:")
            return statement.partition(f" {subfield}: ")[2] if subfield else statement
    return ""
