"""Parses Markdown into sections of the text that a reader of the page sees."""

import re
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from imprag.corpus.html_text import breaks_line, heading_level, html_pieces
from imprag.corpus.outline import Outline

_FRONT_MATTER_LINE = re.compile(r"$|\s|#|[-\]}]|[^:=\n]{1,80}[:=]")
_TITLE_LINE = re.compile(r"[\"']?title[\"']? *[:=] *(\S.{0,1000})", re.IGNORECASE)
_HEADING_CHARACTERS = 300  # a longer HTML heading was never closed
_INLINE_CHARACTERS = 4000  # the parser's time grows with the square of a paragraph's length
# The parser takes about 25 microseconds per block, cell or list marker. A text with more than
# _BLOCKS of them, and more than one per _CHARACTERS_PER_BLOCK, is not prose; it is kept unparsed.
_BLOCKS = 200_000
_CHARACTERS_PER_BLOCK = 5
_LIST_MARKER = re.compile(r"(?:[-+*]|\d\.) ")
_BRACKETS = 200  # a part with more brackets has no links; it is kept unparsed
_PLAIN = re.compile(r"[^\\`*_\[\]<>&!~]*")
_TABLE_OF_CONTENTS = ("[toc]", "[[toc]]", "[[_toc_]]", "{:toc}")


def parse_markdown(text: str) -> Outline:
    """Title and sections of a Markdown document.

    Keeps text and code. Drops link targets, images, link definitions, HTML tags and comments,
    lists of links into the document itself, and front matter except its title.
    """
    title, body = _front_matter(text)
    if _is_dense(body):
        outline = Outline(title)
        outline.block(body)
        return outline
    return _Reader(title).read(body)


def _is_dense(text: str) -> bool:
    """Whether a text has so many tiny blocks that parsing would take too long."""
    if len(text) < _BLOCKS:
        return False
    markers = sum(1 for _ in _LIST_MARKER.finditer(text))
    blocks = text.count("\n") + text.count("|") // 3 + markers
    return blocks > max(_BLOCKS, len(text) // _CHARACTERS_PER_BLOCK)


def _front_matter(text: str) -> tuple[str | None, str]:
    """The title in a document's YAML or TOML front matter, and the document after it."""
    fence = text[:3]
    first, _, rest = text.partition("\n")
    if fence not in ("---", "+++") or first.strip() != fence:
        return None, text
    title, length = None, len(first) + 1
    for line in rest.splitlines(keepends=True):
        length += len(line)
        if line.strip() in (fence, "..." if fence == "---" else fence):
            return title, text[length:]
        if not _FRONT_MATTER_LINE.match(line):
            break
        if title is None and (found := _TITLE_LINE.match(line)):
            title = _scalar(found[1].strip())
    return None, text


def _scalar(source: str) -> str | None:
    """A YAML or TOML value as text; None for lists and mappings."""
    try:
        value = yaml.safe_load(source)
    except (yaml.YAMLError, ValueError, RecursionError):
        value = source
    if value is None or isinstance(value, list | dict):
        return None
    # Numbers and dates stay as written: 007 is not 7.
    text = " ".join((value if isinstance(value, str) else source).split())
    return text or None


class _Reader:
    """Builds the outline of a document from the parser's tokens."""

    def __init__(self, title: str | None) -> None:
        self.outline = Outline(title)
        self._parser = MarkdownIt("commonmark", {"maxNesting": 20})
        self._parser.enable(["table", "strikethrough"]).disable(["inline", "text_join"])
        self._environment: dict[str, Any] = {}
        self._heading: tuple[int, list[str]] | None = None  # the open HTML heading
        self._lists: list[int | None] = []  # each open list's next number; None for bullets
        self._bullet = ""
        self._items: list[str] = []  # items of the outermost open list
        self._only_links = True  # whether that list has only links into the document
        self._cells: list[str] | None = None  # cells of a table's open row

    def read(self, text: str) -> Outline:
        tokens = self._parser.parse(text, self._environment)
        for token, following in zip_longest(tokens, tokens[1:]):
            self._token(token, following)
        self._close_html_heading()
        return self.outline

    def _token(self, token: Token, following: Token | None) -> None:
        match token.type:
            case "heading_open" if token.level == 0 and following:
                self._close_html_heading()
                self.outline.heading(int(token.tag[1]), self._inline(following.content)[0])
                following.content = ""
            case "inline":
                self._paragraph(token.content)
            case "fence" | "code_block":
                self._add(token.content)
            case "html_block":
                self._html(token.content)
            case "bullet_list_open":
                self._lists.append(None)
            case "ordered_list_open":
                self._lists.append(int(token.attrGet("start") or 1))
            case "bullet_list_close" | "ordered_list_close":
                self._close_list()
            case "list_item_open":
                self._open_item()
            case "tr_open":
                self._cells = []
            case "tr_close":
                row, self._cells = self._cells or [], None
                self._add(" | ".join(row))

    def _paragraph(self, content: str) -> None:
        text, only_links = self._inline(content)
        self._only_links &= only_links
        if self._cells is not None:
            self._cells.append(text)
        elif self._heading:
            self._heading[1].append(text)
        elif text.strip().lower() not in _TABLE_OF_CONTENTS:
            self._add(text)

    def _add(self, block: str) -> None:
        self._close_html_heading()
        if self._lists:
            indent = "  " * (len(self._lists) - 1)
            self._items.append(indent + self._bullet + block.strip("\n"))
            self._bullet = ""
        else:
            self.outline.block(block)

    def _open_item(self) -> None:
        number = self._lists[-1]
        self._bullet = "- " if number is None else f"{number}. "
        if number is not None:
            self._lists[-1] = number + 1

    def _close_list(self) -> None:
        self._lists.pop()
        self._bullet = ""
        if not self._lists:
            if not self._only_links:
                self.outline.block("\n".join(self._items))
            self._items, self._only_links = [], True

    def _inline(self, content: str) -> tuple[str, bool]:
        """The text of a paragraph, and whether it has only links into the document."""
        if _PLAIN.fullmatch(content) and "  \n" not in content:
            return content.replace("\n", " ").strip(), not content.strip()
        text: list[str] = []
        target, only_links = "", True
        for token in self._inline_tokens(content):
            match token.type:
                case "link_open":
                    target = str(token.attrGet("href") or "")
                case "link_close":
                    target = ""
                case "softbreak":
                    text.append(" ")
                case "hardbreak":
                    text.append("\n")
                case "html_inline":
                    tags = [piece for piece in html_pieces(token.content) if piece]
                    text += ["\n" for tag in tags if not isinstance(tag, str) and tag[0] == "br"]
                case "text" | "text_special" | "code_inline":
                    text.append(token.content)
                    only_links &= target.startswith("#") or not token.content.strip()
        return "".join(text).strip(), only_links

    def _inline_tokens(self, content: str) -> Iterator[Token]:
        for part in _parts(content):
            tokens: list[Token] = []
            if part.count("[") > _BRACKETS:
                yield Token("text", "", 0, content=part)
                continue
            self._parser.inline.parse(part, self._parser, self._environment, tokens)
            yield from tokens

    def _html(self, source: str) -> None:
        text: list[str] = []
        for piece in html_pieces(source):
            if isinstance(piece, str):
                (self._heading[1] if self._heading else text).append(piece)
                continue
            tag, opens = piece
            if level := heading_level(tag):
                self._close_html_heading()
                self._add_html(text)
                if opens and not self._lists:
                    self._heading = level, []
            elif breaks_line(tag) and not self._heading:
                text.append("\n")
        self._add_html(text)

    def _add_html(self, text: list[str]) -> None:
        """Add the collected text as a block and clear it."""
        lines = (" ".join(line.split()) for line in "".join(text).splitlines())
        if block := "\n".join(line for line in lines if line):
            self._only_links = False
            self._add(block)
        text.clear()

    def _close_html_heading(self) -> None:
        if self._heading:
            level, parts = self._heading
            self._heading = None
            if sum(map(len, parts)) > _HEADING_CHARACTERS:
                for part in parts:
                    self._add(part)
            else:
                self.outline.heading(level, " ".join(parts))


def _parts(content: str) -> Iterator[str]:
    """Split a paragraph into parts for the inline parser, at white space where possible."""
    start = 0
    while start < len(content):
        end = start + _INLINE_CHARACTERS
        if end < len(content):
            end = max(content.rfind(space, start, end) for space in " \n") + 1 or end
        yield content[start:end]
        start = end
