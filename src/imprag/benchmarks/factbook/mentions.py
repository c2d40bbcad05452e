"""Finds names in texts, and decides which of them stand for an entity on their own."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_CAPITALIZED = re.compile(r"\b[^\W\d_a-z]\w*")
# Words that begin sentences: their capital does not make them part of a name.
_OPENERS = re.compile(
    "A|After|All|Although|An|And|As|At|Because|Before|Between|Both|But|By|Despite|During|Each|"
    "Following|For|Former|Formerly|From|He|Her|His|However|If|In|Including|Instead|It|Its|Like|"
    "Many|Modern|Most|Near|Not|Of|On|Once|One|Only|Or|Other|Over|She|Since|So|Some|Such|That|The|"
    "Their|Then|These|They|This|Though|Through|Throughout|To|Today|Together|Two|Under|Unlike|Until|"
    "Upon|When|Where|Whereas|Which|While|With|Within|Without"
)
_PART_OF_NAME = re.compile("Eastern|Great|Greater|Late|New|Northern|Old|Southern|Western")
_JOINED = ("-", "–", "—", "/")
_PART_BEFORE = re.compile(r"(?:(\w[\w'’.-]*)|[A-Z][\w'’.-]* of(?: the)?)\s+$")
_PART_AFTER = re.compile(r"\s+(?:[A-Z0-9]|of (?:the )?[A-Z])")


class Mention(NamedTuple):
    """A name in a text: ``text[start:end] == name``."""

    start: int
    end: int
    name: str


class NameFinder:
    """Finds names in texts: exact case, whole words, and the longest name at each position.

    Names must begin with a capital.
    """

    def __init__(self, names: Iterable[str]) -> None:
        by_first_word = defaultdict(list)
        for name in names:
            first = _CAPITALIZED.match(name)
            if first:
                by_first_word[first[0]].append(name)
        self._names = {
            word: sorted(names, key=len, reverse=True) for word, names in by_first_word.items()
        }

    def find(self, text: str) -> Iterator[Mention]:
        """The names in the text, from left to right, without overlap."""
        end = 0
        for word in _CAPITALIZED.finditer(text):
            if word.start() < end:
                continue
            for name in self._names.get(word[0], ()):
                after = word.start() + len(name)
                if text.startswith(name, word.start()) and not text[after : after + 1].isalnum():
                    end = after
                    yield Mention(word.start(), end, name)
                    break


def stands_alone(text: str, mention: Mention) -> bool:
    """Whether the name is not part of a longer one, as ``Mexico`` is in ``Gulf of Mexico``."""
    before, after = text[: mention.start], text[mention.end :]
    joined = before.endswith(_JOINED) or after.startswith(_JOINED)
    if joined or _PART_AFTER.match(after):
        return False
    part = _PART_BEFORE.search(before)
    if part is None:
        return True
    word = part[1]
    if word is None:
        return False
    # A word before a name of several words describes it: "Pope John Paul II".
    described = " " in mention.name and not _PART_OF_NAME.fullmatch(word)
    return described or not word[0].isupper() or _OPENERS.fullmatch(word) is not None


def mark(text: str, mention: Mention) -> str:
    """The text with ``[START]`` and ``[END]`` around the mention."""
    return f"{text[: mention.start]}[START] {mention.name} [END]{text[mention.end :]}"
