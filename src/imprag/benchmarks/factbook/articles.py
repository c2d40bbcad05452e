"""Makes questions about wiki10k articles from their titles, descriptions and dates."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from imprag.benchmarks.factbook.linking import description, lead
from imprag.benchmarks.factbook.splits import choose
from imprag.benchmarks.factbook.values import without_accents
from imprag.corpus import Passage
from imprag.tasks.example import Answer, Example

# Templates by kind of question. X is the title, D the description, Y the year of birth.
_TEMPLATES = {
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
class _Question:
    """A question's kind, answers, and the texts for its template."""

    kind: str
    answers: Sequence[str]
    description: str = ""
    year: str = ""


def article_questions(articles: Sequence[Passage], seed: int) -> Iterator[Example]:
    """Yield questions for birth, death, a person, a description, or the name of a thing.

    A question for a person or a name gives a description that fits only one article and does not
    reveal its title.
    """
    times = Counter(map(_clue, articles))
    for article in articles:
        for asked in _questions(article, unique=times[_clue(article)] == 1):
            yield _example(article, asked, seed)


def _clue(article: Passage) -> str:
    """The part of the description that a question gives away."""
    told = description(article)
    life = _LIFE.match(told)
    return (f"{life['who']} {life['from'] or life['born']}" if life else told).casefold()


def _questions(article: Passage, *, unique: bool) -> Iterator[_Question]:
    told = description(article)
    if not told:
        return
    life = _LIFE.match(told)
    names = _names(article.title)
    reveals_title = not _words(told).isdisjoint(_words(article.title))
    if life:
        born = life["from"] or life["born"]
        yield _Question("born", [born])
        if life["to"]:
            yield _Question("died", [life["to"]])
        if unique and not reveals_title:
            yield _Question("person", names, life["who"], born)
        return
    if article.meta["topic"] == "People" or "(" in told:  # a person with uncertain years
        return
    plain = _lower_first(told, article)
    if len(told.split()) <= _MAX_ANSWER_WORDS:
        yield _Question("what", list(dict.fromkeys([plain, told])))
    if unique and not reveals_title and len(told.split()) >= _MIN_NAMING_WORDS:
        yield _Question("name", names, plain)


def _example(article: Passage, asked: _Question, seed: int) -> Example:
    template = choose(_TEMPLATES[asked.kind], seed, "article", asked.kind, article.title)
    best, *forms = asked.answers
    return Example(
        id=f"article/{article.id.removeprefix('wiki10k/')}/{asked.kind}",
        input=template.format(
            X=_names(article.title)[0],
            D=asked.description,
            Y=asked.year,
            a="an" if asked.description[:1].lower() in "aeiou" else "a",
        ),
        output=[Answer(best, [{"passage_id": article.id}]), *map(Answer, forms)],
        meta={"title": article.title, "kind": asked.kind},
    )


def _names(title: str) -> list[str]:
    """The title as people say it, and its other spellings."""
    said = re.sub(r" \([^)]*\)$", "", title)
    return list(dict.fromkeys([said, title, without_accents(said)]))


def _lower_first(told: str, article: Passage) -> str:
    """The description with a lower-case first letter, unless its first word is always capitalised.

    The article's sentences show whether it is.
    """
    first = told.split()[0]
    running = " ".join(lead(article))
    if first[1:] != first[1:].lower() or re.search(rf"(?<=[a-z,] ){re.escape(first)}\b", running):
        return told
    return told[:1].lower() + told[1:]


def _words(text: str) -> set[str]:
    return {word for word in re.findall(r"\w+", without_accents(text).casefold()) if len(word) > 2}
