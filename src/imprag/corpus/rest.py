"""Parses reStructuredText into text with a few rules of our own.

docutils parses the whole language, but it executes ``include`` and ``raw`` directives, reports
Sphinx's roles and directives as errors instead of skipping them, and is slow. Search needs only
headings, text and code, for which the rules below read every line once.
"""

import re
from collections.abc import Sequence

from imprag.corpus.outline import Outline

_ADORNMENT = re.compile(r"([!-/:-@\[-`{-~])\1{2,}\s*$")
_SHORT_UNDERLINE = re.compile(r"([!-/:-@\[-`{-~])\1\s*$")
_BORDER = re.compile(r"[-=+|:\s]{3,}$")
_DIRECTIVE = re.compile(r"\.\. (?:\|[^|\n]{1,200}\| )?([A-Za-z][\w:.+-]{0,60})::(.*)")
_FOOTNOTE = re.compile(r"\.\. \[([^\]\n]{1,80})\] ?(.*)")
_OPTION = re.compile(r":[\w -]{1,60}:(?:\s|$)")
_ANONYMOUS_TARGET = re.compile(r"__ \S")
#: Directives without visible text, or that refer to other files.
_WITHOUT_TEXT = {
    *("contents", "image", "include", "raw", "toctree", "sectnum", "index", "meta", "role"),
    *("default-role", "highlight", "literalinclude", "currentmodule", "automodule", "autoclass"),
    *("autofunction", "autosummary", "target-notes", "unicode", "replace", "date", "class"),
}
#: Directives whose argument is not text. In others it is a title, a signature or the first line.
_ARGUMENT_IS_NO_TEXT = {"figure", "container", "only", "ifconfig", "grid", "tabs", "rst-class"}
_CAPTION = re.compile(r":(?:header|caption):\s+(.+)")
_CODE = {"code", "code-block", "sourcecode", "parsed-literal", "literal", "doctest", "testcode"}
#: A substitution definition: name, directive and argument.
_DEFINITION = re.compile(
    r"^[ \t]*\.\. \|([^|\n]{1,200})\| ([A-Za-z][\w:.+-]{0,60})::(.*(?:\n[ \t]+\S.*)*)",
    re.MULTILINE,
)
_SUBSTITUTION = re.compile(
    r"(?<![\w|])(?<!\.\. )\|([^|\s](?:[^|\n]{0,198}[^|\s])?)\|_{0,2}(?![\w|])"
)
_DEEPEST = 8  # nested directives; deeper ones are kept unparsed
_INLINE = (
    (re.compile(r"(?<!`)``([^`\n]{1,300})``"), r"\1"),
    (re.compile(r":[\w:+.-]{1,60}:`([^`<]{1,300}?)\s{0,3}(?:<[^`>]{0,300}>)?`"), r"\1"),
    (re.compile(r"`([^`<]{1,300}?)\s{0,3}<[^`>]{1,500}>`_{0,2}"), r"\1"),
    (re.compile(r"`([^`]{1,300})`_{0,2}"), r"\1"),
    (re.compile(r"(?<![\w*])\*\*([^*\n]{1,300})\*\*(?![\w*])"), r"\1"),
    (re.compile(r"(?<![\w*])\*([^*\s][^*\n]{0,300})\*(?![\w*])"), r"\1"),
    (re.compile(r"\b([A-Za-z0-9]{1,60})_(?=[\s.,;:)!?]|$)"), r"\1"),
)


def parse_rest(text: str) -> Outline:
    """Title and sections of a reStructuredText document.

    Keeps text and code, and replaces substitutions. Drops link targets, images, comments, tables
    of contents and other directives without text.
    """
    lines = [line.expandtabs().rstrip() for line in _substituted(text).split("\n")]
    outline = _parse(lines, 0)
    # As docutils does: a heading is the title only if no other one has its style.
    return outline if outline.highest < 2 else _parse(lines, 0, has_title=False)


def _substituted(text: str) -> str:
    """Replace substitutions by their text; those for images, mostly badges, are dropped."""
    meaning = {
        name: " ".join(argument.split()) if directive == "replace" else ""
        for name, directive, argument in _DEFINITION.findall(text)
    }
    if not meaning:
        return text
    return _SUBSTITUTION.sub(lambda found: meaning.get(found[1], found[0]), text)


def _parse(lines: Sequence[str], depth: int, has_title: bool = True) -> Outline:
    outline = Outline(has_title=has_title)
    styles: list[tuple[str, bool]] = []
    number = 0
    is_literal = False  # whether the last paragraph ended with ``::``
    while number < len(lines):
        if not lines[number]:
            number += 1
            continue
        if is_literal and lines[number][0].isspace():
            end = _end_of_indented(lines, number)
            outline.block("\n".join(_unindented(lines[number:end])))
            number, is_literal = end, False
            continue
        if heading := _heading(lines, number):
            words, style, length = heading
            if style not in styles:
                styles.append(style)
            outline.heading(styles.index(style) + 1, _inline(words))
            number += length
            continue
        end = _end_of_block(lines, number)
        _add_block(outline, lines[number:end], depth)
        is_literal = lines[end - 1].endswith("::") and not lines[number].startswith("..")
        number = end
    return outline


def _heading(lines: Sequence[str], number: int) -> tuple[str, tuple[str, bool], int] | None:
    """The heading that begins at a line: its words, its style and its number of lines."""
    first, *others = [*lines[number : number + 3], "", ""][:3]
    if _ADORNMENT.match(first):
        words, below = others
        if words.strip() and below == first and len(words.strip()) <= len(first) + 2:
            return words.strip(), (first[0], True), 3
        return None
    below = others[0]
    if not first or first[0].isspace():
        return None
    if _ADORNMENT.match(below):
        is_heading = len(first) <= len(below) + 2
    else:
        is_heading = len(first) <= len(below) and bool(_SHORT_UNDERLINE.match(below))
    return (first, (below[0], False), 2) if is_heading else None


def _end_of_block(lines: Sequence[str], number: int) -> int:
    """The end of a paragraph, or of an explicit block with its indented body."""
    end = number + 1
    if lines[number].startswith(".. ") or lines[number] == "..":
        return _end_of_indented(lines, end)
    while end < len(lines) and lines[end] and not lines[end].startswith(".. "):
        if _heading(lines, end):
            break
        end += 1
    return end


def _end_of_indented(lines: Sequence[str], number: int) -> int:
    last = number
    for end in range(number, len(lines)):
        if lines[end]:
            if not lines[end][0].isspace():
                break
            last = end + 1
    return last


def _add_block(outline: Outline, lines: Sequence[str], depth: int) -> None:
    if lines[0].startswith("..") and lines[0][2:3] in ("", " "):
        _add_explicit(outline, lines, depth)
    elif not _ANONYMOUS_TARGET.match(lines[0]):
        kept = [line for line in lines if not _BORDER.match(line)]
        text = "\n".join(kept)
        text = text[:-1] if text.endswith("::") else text
        outline.block(_inline(text.removesuffix("\n:")))


def _add_explicit(outline: Outline, lines: Sequence[str], depth: int) -> None:
    """Add the text of a directive or footnote; comments and targets have none."""
    body = _unindented(lines[1:])
    if footnote := _FOOTNOTE.match(lines[0]):
        outline.block(_inline("\n".join([footnote[2], *body])))
        return
    directive = _DIRECTIVE.match(lines[0])
    if not directive or directive[1].lower() in _WITHOUT_TEXT or lines[0].startswith(".. |"):
        return
    name, argument = directive[1].lower(), directive[2].strip()
    start = next((n for n, line in enumerate(body) if line and not _OPTION.match(line)), len(body))
    captions = [found[1] for line in body[:start] if (found := _CAPTION.match(line))]
    body = body[start:]
    for caption in captions:
        outline.block(caption)
    if name in _CODE or depth == _DEEPEST:
        outline.block("\n".join(body))
        return
    if argument and name not in _ARGUMENT_IS_NO_TEXT:
        outline.block(_inline(argument))
    for section in _parse(body, depth + 1).sections:
        for block in [*section.headings[-1:], *section.blocks]:
            outline.block(block)


def _unindented(lines: Sequence[str]) -> list[str]:
    indents = [len(line) - len(line.lstrip()) for line in lines if line]
    indent = min(indents, default=0)
    return [line[indent:] for line in lines]


def _inline(text: str) -> str:
    for pattern, replacement in _INLINE:
        text = pattern.sub(replacement, text)
    return text
