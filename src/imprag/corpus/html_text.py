"""Extracts the text of HTML, without tags, comments, scripts and styles."""

import html
import re
from collections.abc import Iterator

_TAG_NAME = re.compile(r"/?[a-zA-Z][a-zA-Z0-9]*")
_BREAKS = {"br", "p", "div", "li", "tr", "table", "ul", "ol", "dd", "dt", "pre", "summary", "hr"}
_UNSEEN = ("script", "style")


def html_pieces(source: str) -> Iterator[str | tuple[str, bool]]:
    """Yield the text and the tags of HTML; a tag is its lower-case name and whether it opens.

    Every character is read once. A comment, tag or script that is never closed counts as text.
    """
    position, text_from = 0, 0
    never = set()  # closing markers that do not occur any more
    while (position := source.find("<", position)) >= 0:
        if source.startswith("<!--", position):
            ending, name = "-->", None
        else:
            found = _TAG_NAME.match(source, position + 1)
            if not found and source[position + 1 : position + 2] not in ("!", "?"):
                position += 1
                continue
            ending, name = ">", found[0].lower() if found else None
        end = -1 if ending in never else source.find(ending, position)
        if end < 0:
            never.add(ending)
            position += 1
            continue
        yield html.unescape(source[text_from:position])
        position = text_from = end + len(ending)
        if name in _UNSEEN and name not in never:
            closed = re.compile(f"</{name}", re.IGNORECASE).search(source, position)
            if closed:
                position = text_from = closed.start()
            else:
                never.add(name)
        elif name is not None:
            yield name.removeprefix("/"), not name.startswith("/")
    yield html.unescape(source[text_from:])


def breaks_line(tag: str) -> bool:
    """Whether a tag begins or ends a line of text."""
    return tag in _BREAKS or heading_level(tag) > 0


def heading_level(tag: str) -> int:
    """1 for ``h1`` to 6 for ``h6``, 0 for other tags."""
    return int(tag[1]) if len(tag) == 2 and tag[0] == "h" and tag[1] in "123456" else 0
