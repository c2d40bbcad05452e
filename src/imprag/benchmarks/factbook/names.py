"""The names of countries: in a sentence, alternative and former names, demonyms."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from imprag.benchmarks.factbook.values import demonyms, former_names, without_accents
from imprag.corpus import Fact

# Entries of the Factbook that are not countries.
_LEFT_OUT = {"European Union", "World"}
# Common names that the Factbook's entries do not list.
_ALSO_CALLED = {
    "Burma": ["Myanmar"],
    "Cabo Verde": ["Cape Verde"],
    "China": ["PRC"],
    "Cocos (Keeling) Islands": ["Cocos Islands", "Keeling Islands"],
    "Côte d'Ivoire": ["Ivory Coast"],
    "Curacao": ["Curaçao"],
    "Czechia": ["Czech Republic"],
    "Democratic Republic of the Congo": ["DR Congo", "Congo-Kinshasa", "DRC", "DROC"],
    "Eswatini": ["Swaziland"],
    "Falkland Islands": ["Islas Malvinas"],
    "Gaza Strip": ["Gaza"],
    "Macau": ["Macao"],
    "Netherlands": ["Holland"],
    "New Zealand": ["NZ"],
    "North Korea": ["DPRK", "N. Korea"],
    "Republic of the Congo": ["Congo-Brazzaville", "Congo (Brazzaville)"],
    "Saint Barthelemy": ["Saint Barthélemy", "St. Barts"],
    "Sao Tome and Principe": ["São Tomé and Príncipe"],
    "South Korea": ["ROK", "S. Korea"],
    "Svalbard": ["Spitsbergen"],
    "Timor-Leste": ["East Timor"],
    "Turkey": ["Turkiye", "Türkiye"],
    "United Arab Emirates": ["UAE"],
    "United Kingdom": ["UK", "Britain", "Great Britain"],
    "United States": ["US", "USA", "U.S.", "United States of America", "America"],
    "Vatican City": ["Holy See"],
}
_WITH_ARTICLE = re.compile(
    r"(?:.* )?(?:Bahamas|Gambia|Comoros|Maldives|Netherlands|Philippines|Islands|Emirates|Kingdom"
    r"|States|Republic|Strip|West Bank|Territory|Lands|Refuges)"
    r"|(?:Isle|Republic|Democratic Republic|Federated States) of .*"
)
_WITHOUT_ARTICLE = re.compile(r".* Island and .*|.* Georgia and .*")


@dataclass(frozen=True)
class Country:
    """A country, territory or area.

    Attributes:
        code: the code in the Factbook, such as ``cd``.
        name: the title in the corpus, such as ``Chad`` or ``The Gambia``.
        dependent: whether it is not a state of its own.
        names: all forms of the present name, ``name`` first.
        demonyms: adjectives and nouns for the people.
        former_names: earlier names.
    """

    code: str
    name: str
    dependent: bool
    names: tuple[str, ...]
    demonyms: tuple[str, ...]
    former_names: tuple[str, ...]

    @property
    def in_sentence(self) -> str:
        """The name with its article, if it has one: ``the Gambia``, ``Chad``."""
        name = self.name.removeprefix("The ")
        article = _WITH_ARTICLE.fullmatch(name) and not _WITHOUT_ARTICLE.fullmatch(name)
        return f"the {name}" if article else name

    @property
    def possessive(self) -> str:
        """The possessive: ``the Gambia's``, ``the Netherlands'``."""
        return self.in_sentence + ("'" if self.name.endswith("s") else "'s")


def read_countries(facts: Iterable[Fact]) -> dict[str, Country]:
    """The countries of the Factbook by code."""
    entries: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for fact in facts:
        if fact.country not in _LEFT_OUT:
            entries[fact.code, fact.country].setdefault(fact.label, fact.text)
    return {code: _country(code, name, entry) for (code, name), entry in entries.items()}


def _country(code: str, name: str, entry: dict[str, str]) -> Country:
    forms = [name, name.removeprefix("The "), *_ALSO_CALLED.get(name, ())]
    for form in ("short", "long"):
        entered = entry.get(f"Country name: conventional {form} form", "")
        forms += [] if re.search(r"[(;,]", entered) else [entered]
    abbreviations = re.split(r" \(?or |\)", entry.get("Country name: abbreviation", ""))
    forms += [form for form in abbreviations if re.fullmatch(r"(?:[A-Z]\w+ )?[A-Z]{3,}", form)]
    forms += [re.sub(r"\bSaint\b", "St.", form) for form in forms if "Saint" in form]
    forms += [without_accents(form) for form in forms]
    people = [
        demonym
        for label in ("Nationality: adjective", "Nationality: noun")
        for demonym in demonyms(entry.get(label, ""))
    ]
    return Country(
        code=code,
        name=name,
        dependent="Dependency status" in entry,
        names=tuple(dict.fromkeys(form for form in forms if form not in ("", "none"))),
        demonyms=tuple(dict.fromkeys(people)),
        former_names=tuple(former_names(entry.get("Country name: former", ""))),
    )
