"""Questions about the articles of wiki10k, from their titles, descriptions and dates."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from imprag.benchmarks.factbook.linking import description, lead
from imprag.benchmarks.factbook.splits import choose
from imprag.benchmarks.factbook.values import without_accents
from imprag.corpus import Passage
from imprag.tasks.example import Answer, Example

# What is asked, by kind, with X for the title, D for the description and Y for the year of birth.
_WORDINGS = {
    "born": ("When was {X} born?", "In which year was {X} born?", "What year is {X}'s birth?"),
    "died": ("When did {X} die?", "In which year did {X} die?", "What year is {X}'s death?"),
    "person": (
        "Which {D} was born in {Y}?",
        "Who, born in {Y}, was {a} {D}?",
        "What is the name of the {D} who was born in {Y}?",
    ),
    "what": ("What is {X}?", "How can {X} be described?", "What is meant by {X}?"),
    "name": (
        'What is described as "{D}"?',
        "What is the name for this: {D}?",
        "Which term or name stands for {D}?",
    ),
}
_LIFE = re.compile(
    r"^(?P<who>[^()]+) \((?:(?P<from>\d{4})[–-](?P<to>\d{4})|born (?P<born>\d{4}))\)$"
)
_MAX_ANSWER_WORDS = 8
_MIN_NAMING_WORDS = 4


@dataclass(frozen=True)
class _Asked:
    """One question: what stands in its wording, and the answers."""

    kind: str
    answers: Sequence[str]
    description: str = ""
    year: str = ""


def article_questions(articles: Sequence[Passage], seed: int) -> Iterator[Example]:
    """When somebody was born or died, who that was, what something is, and what it is called.

    Who or what is asked for by a description that fits one article only and does not tell its
    title.
    """
    times = Counter(map(_told, articles))
    for article in articles:
        for asked in _asked(article, unique=times[_told(article)] == 1):
            yield _example(article, asked, seed)


def _told(article: Passage) -> str:
    """As much of the description as a question gives away."""
    told = description(article)
    life = _LIFE.match(told)
    return (f"{life['who']} {life['from'] or life['born']}" if life else told).casefold()


def _asked(article: Passage, *, unique: bool) -> Iterator[_Asked]:
    told = description(article)
    if not told:
        return
    life = _LIFE.match(told)
    names = _names(article.title)
    tells = not _words(told).isdisjoint(_words(article.title))
    if life:
        born = life["from"] or life["born"]
        yield _Asked("born", [born])
        if life["to"]:
            yield _Asked("died", [life["to"]])
        if unique and not tells:
            yield _Asked("person", names, life["who"], born)
        return
    if article.meta["topic"] == "People" or "(" in told:  # a life with doubts about its years
        return
    plain = _lower_first(told, article)
    if len(told.split()) <= _MAX_ANSWER_WORDS:
        yield _Asked("what", list(dict.fromkeys([plain, told])))
    if unique and not tells and len(told.split()) >= _MIN_NAMING_WORDS:
        yield _Asked("name", names, plain)


def _example(article: Passage, asked: _Asked, seed: int) -> Example:
    wording = choose(_WORDINGS[asked.kind], seed, "article", asked.kind, article.title)
    best, *forms = asked.answers
    return Example(
        id=f"article/{article.id.removeprefix('wiki10k/')}/{asked.kind}",
        input=wording.format(
            X=_names(article.title)[0],
            D=asked.description,
            Y=asked.year,
            a="an" if asked.description[:1].lower() in "aeiou" else "a",
        ),
        output=[Answer(best, [{"passage_id": article.id}]), *map(Answer, forms)],
        meta={"title": article.title, "kind": asked.kind},
    )


def _names(title: str) -> list[str]:
    """The title as one would say it, and other ways to write it."""
    said = re.sub(r" \([^)]*\)$", "", title)
    return list(dict.fromkeys([said, title, without_accents(said)]))


def _lower_first(told: str, article: Passage) -> str:
    """With a small first letter, unless the first word has a capital in running text, too."""
    first = told.split()[0]
    running = " ".join(lead(article))
    if first[1:] != first[1:].lower() or re.search(rf"(?<=[a-z,] ){re.escape(first)}\b", running):
        return told
    return told[:1].lower() + told[1:]


def _words(text: str) -> set[str]:
    return {word for word in re.findall(r"\w+", without_accents(text).casefold()) if len(word) > 2}
