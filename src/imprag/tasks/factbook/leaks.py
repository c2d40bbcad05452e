"""Keeping facts about countries of dev and test out of training texts."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from imprag.tasks.example import Example
from imprag.tasks.factbook.facts import KnownFact
from imprag.tasks.factbook.linking import country_names
from imprag.tasks.factbook.mentions import NameFinder
from imprag.tasks.factbook.names import Country
from imprag.tasks.matching import contains_answer


class HeldOutFacts:
    """The facts about some countries, to be found in any text.

    A text tells a fact if it names the country, in whatever form, and holds the fact's value. This
    finds too much, a chance "5 years" beside the country's name included, and that does no harm.
    """

    def __init__(self, facts: Iterable[KnownFact], countries: Iterable[Country]) -> None:
        self._of_country: Mapping[str, list[KnownFact]] = defaultdict(list)
        for fact in facts:
            self._of_country[fact.country.name].append(fact)
        names = country_names(countries)
        self._country_of = {
            name: country.name
            for name, country in names.items()
            if country.name in self._of_country
        }
        # All names are looked for, so that "Guinea" is not found in "Guinea-Bissau".
        self._finder = NameFinder(names)

    def told_in(self, text: str) -> KnownFact | None:
        """A fact that the text tells, if there is one."""
        named = {self._country_of.get(mention.name) for mention in self._finder.find(text)}
        for name in sorted(filter(None, named)):
            for fact in self._of_country[name]:
                if contains_answer(text, fact.answers):
                    return fact
        return None

    def told_by(self, example: Example) -> KnownFact | None:
        """A fact that the example's input or answers tell, if there is one."""
        return self.told_in("\n".join([example.input, *example.answers]))
