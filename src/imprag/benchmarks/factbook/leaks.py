"""Keeps facts about the countries of dev and test out of training texts."""

from collections import defaultdict
from collections.abc import Iterable

from imprag.benchmarks.factbook.facts import KnownFact
from imprag.benchmarks.factbook.mentions import NameFinder
from imprag.benchmarks.factbook.names import Country
from imprag.tasks.example import Example
from imprag.tasks.matching import contains_answer


class HeldOutFacts:
    """Finds facts about the held-out countries in any text.

    A text tells a fact if it names the country in any form and contains the fact's value outside
    the name. This finds too much, such as a chance "5 years" in a text on another subject, which
    does no harm.
    """

    def __init__(self, facts: Iterable[KnownFact], countries: Iterable[Country]) -> None:
        self._of_country: dict[str, list[KnownFact]] = defaultdict(list)
        for fact in facts:
            self._of_country[fact.country.name].append(fact)
        self._called: dict[str, set[str]] = defaultdict(set)
        for country in countries:
            for name in (*country.names, *country.demonyms, *country.former_names):
                self._called[name].add(country.name)
        # The names of all countries, so that "Guinea" is not found in "Guinea-Bissau".
        self._finder = NameFinder(self._called)

    def told_in(self, text: str) -> KnownFact | None:
        """A fact that the text tells, or None."""
        places = defaultdict(list)
        for mention in self._finder.find(text):
            for country in self._called[mention.name] & self._of_country.keys():
                places[country].append(mention)
        for country in sorted(places):
            # The names do not count as values: "Spanish" alone does not tell Spain's demonym.
            rest = text
            for mention in reversed(places[country]):
                rest = f"{rest[: mention.start]} ■ {rest[mention.end :]}"
            for fact in self._of_country[country]:
                if contains_answer(rest, fact.answers):
                    return fact
        return None

    def told_by(self, example: Example) -> KnownFact | None:
        """A fact that the example's input or answers tell, or None."""
        return self.told_in("\n".join([example.input, *example.answers]))
