"""Entity linking: names of countries and articles, marked in sentences about other subjects."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from imprag.benchmarks.factbook.mentions import Mention, NameFinder, mark, stands_alone
from imprag.benchmarks.factbook.names import Country
from imprag.benchmarks.factbook.values import without_accents
from imprag.corpus import Fact, Passage
from imprag.tasks.example import Answer, Example
from imprag.tasks.synthetic import split_sentences

# Fields of the Factbook that are written in sentences.
PROSE = {
    "Background",
    "Capital: etymology",
    "Country name: etymology",
    "Economic overview",
    "Executive branch: note",
    "Geography - note",
    "Military - note",
    "National anthem(s): history",
    "Population distribution",
    "Space program overview",
}
_MIN_WORDS = 8
_MAX_WORDS = 60
# Contexts in which a demonym names a language, faith or people rather than a country.
_NO_COUNTRY_BEFORE = re.compile(r"\b(?:in|into|ancient|old|Old|Ancient|the word)\s+$")
_NO_COUNTRY_AFTER = re.compile(
    r"\s+(?:words?|terms?|names?|phrases?|language|languages|version|spelling|translation|roots?"
    r"|meaning|dialect|speakers?|myth\w*|alphabet|verb|letters?|for|and Latin|origin)\b|-speak"
)
# Names that regions, peoples and many other things have, too.
_AMBIGUOUS = {
    *("America", "Central African", "Latin", "Micronesian", "Micronesians"),
    *("Croats", "Saint Martin", "Serbs", "Slovenes", "Turk", "Turks"),
}
_HAS_VERB = re.compile(r"\b(?:is|was|are|were|has|had|have)\b")


class Link(NamedTuple):
    """A mention of an entity in a sentence about another entity.

    Attributes:
        entity: the name of the mentioned country, or the title of the mentioned article.
        source: the name or title of the entity whose text contains the sentence.
        sentence: the text around the mention.
        mention: the position of the name in the sentence.
    """

    entity: str
    source: str
    sentence: str
    mention: Mention


def country_names(countries: Iterable[Country]) -> dict[str, Country]:
    """The country of every name that stands for only one.

    Names have priority over demonyms, demonyms over former names, and states over territories.
    """
    found: dict[str, Country] = {}
    for kind in ("names", "demonyms", "former_names"):
        claims = defaultdict(list)
        for country in countries:
            for name in getattr(country, kind):
                claims[name].append(country)
        for name, claimants in claims.items():
            states = [country for country in claimants if not country.dependent] or claimants
            if len(states) == 1 and name[0].isupper() and name not in _AMBIGUOUS:
                found.setdefault(name, states[0])
    return found


def country_links(entries: Iterable[Fact], countries: Mapping[str, Country]) -> Iterator[Link]:
    """Yield mentions of countries in the Factbook's sentences about other countries."""
    names = country_names(countries.values())
    demonyms = {demonym for country in countries.values() for demonym in country.demonyms}
    finder = NameFinder(names)
    seen = set()
    for entry in entries:
        if entry.code not in countries or not {entry.field, entry.label} & PROSE:
            continue
        for sentence in _pieces(entry.text):
            for mention in finder.find(sentence):
                country = names[mention.name]
                key = (country.name, entry.country, sentence)
                if (
                    country.code != entry.code
                    and key not in seen
                    and stands_alone(sentence, mention)
                    and (mention.name not in demonyms or _means_country(sentence, mention))
                ):
                    seen.add(key)
                    yield Link(country.name, entry.country, sentence, mention)


def article_links(passages: Sequence[Passage]) -> Iterator[Link]:
    """Yield mentions of wiki10k articles, by title, in the leads of other articles."""
    finder = NameFinder(_linkable_titles(passages))
    seen = set()
    for passage in passages:
        for sentence in lead(passage):
            if len(sentence.split()) < _MIN_WORDS:
                continue
            for mention in finder.find(sentence):
                key = (mention.name, sentence)
                if (
                    mention.name != passage.title
                    and key not in seen
                    and stands_alone(sentence, mention)
                ):
                    seen.add(key)
                    yield Link(mention.name, passage.title, sentence, mention)


def lead(article: Passage) -> list[str]:
    """The sentences of an article, without the title and the description before them."""
    return _described(article)[1]


def description(article: Passage) -> str:
    """The description between title and extract, without its full stop; "" if there is none."""
    return _described(article)[0].removesuffix(".")


def _described(article: Passage) -> tuple[str, list[str]]:
    """An article's description and the sentences after it."""
    sentences = split_sentences(article.text.removeprefix(article.title).lstrip(". "))
    if len(sentences) > 1 and not _HAS_VERB.search(sentences[0]):
        return sentences[0], sentences[1:]
    return "", sentences


def link_example(link: Link, answers: Sequence[str], gold: Sequence[str], number: int) -> Example:
    """An example that asks for the marked entity. Any passage of its page proves the answer."""
    forms = list(dict.fromkeys([*answers, *map(without_accents, answers)]))
    proof = [{"passage_id": id} for id in gold]
    return Example(
        id=f"link/{number}",
        input=mark(link.sentence, link.mention),
        output=[Answer(forms[0], proof), *map(Answer, forms[1:])],
        meta={"mention": link.mention.name, "source": link.source},
    )


def _pieces(text: str) -> Iterator[str]:
    """The sentences of an entry; long ones are split at the semicolons that join their parts."""
    for sentence in split_sentences(text):
        parts = [sentence] if len(sentence.split()) <= _MAX_WORDS else sentence.split("; ")
        for part in parts:
            part = re.sub(r" \(\d{4}\)$", "", part)
            if _MIN_WORDS <= len(part.split()) <= _MAX_WORDS:
                yield part


def _means_country(sentence: str, mention: Mention) -> bool:
    before, after = sentence[: mention.start], sentence[mention.end :]
    return not _NO_COUNTRY_BEFORE.search(before) and not _NO_COUNTRY_AFTER.match(after)


def _linkable_titles(passages: Iterable[Passage]) -> list[str]:
    """The titles that are proper names and unambiguous without a word in parentheses."""
    small: Counter[str] = Counter()
    capital: Counter[str] = Counter()
    titles = []
    for passage in passages:
        titles.append(passage.title)
        for before, word in pairwise(re.findall(r"\w+|[^\w\s]", passage.text)):
            if word[0].islower():
                small[word] += 1
            elif before[-1].isalnum():  # not at the beginning of a sentence
                capital[word.lower()] += 1
    several = Counter(re.sub(r" \(.*", "", title) for title in titles)

    def is_proper_name(title: str) -> bool:
        first, *others = re.findall(r"\w+", title)
        if others:
            return any(word[0].isupper() for word in others)
        return capital[first.lower()] > 5 * small[first.lower()]

    return [
        title
        for title in titles
        if several[title] == 1
        and title[0].isupper()
        and title not in _AMBIGUOUS
        and is_proper_name(title)
    ]
