"""Relative links in README, docs, dev and examples lead to files and headings that exist."""

import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *(
        page
        for folder in ("docs", "dev", "examples")
        for page in sorted(ROOT.glob(f"{folder}/**/*.md"))
    ),
]
ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)  # https:, mailto:


def blocks(page: Path) -> list[Token]:
    front_matter = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
    text = front_matter.sub("", page.read_text(encoding="utf-8"))
    return MarkdownIt("commonmark").enable("table").parse(text)


def anchors(page: Path) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    tokens = blocks(page)
    seen: Counter[str] = Counter()
    found = set()
    for opening, content in pairwise(tokens):
        if opening.type != "heading_open":
            continue
        text = "".join(part.content for part in content.children or [])
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def links(page: Path) -> Iterator[str]:
    for block in blocks(page):
        for part in block.children or []:
            target = part.attrGet("href") or part.attrGet("src")
            if target is not None:
                yield str(target)


def broken_links(page: Path) -> list[str]:
    broken = []
    for link in links(page):
        if ELSEWHERE.match(link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    assert broken_links(page) == []


def test_a_missing_file_and_a_missing_heading_are_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# One `two`\n\n## Same\n\n## Same\n")
    page = tmp_path / "page.md"
    page.write_text(
        "---\ntitle: front matter\n---\n# Here\n\n"
        "[a](other.md#one-two) [b](other.md#same-1) [c](#here) [d](https://example.org#x)\n"
        "![e](missing.svg) [f](other.md#two) [g](#there) `[h](no.md)`\n\n"
        "| table |\n|---|\n| [i](gone.md) |\n\n```\n[j](no.md)\n```\n"
    )
    assert broken_links(page) == ["missing.svg", "other.md#two", "#there", "gone.md"]
