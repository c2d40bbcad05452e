"""The outline of a document: its title and sections, collected while it is parsed."""

import re
from dataclasses import dataclass, field

_TITLE_CHARACTERS = 80
_WORD_CHARACTER = re.compile(r"\w")


@dataclass
class Section:
    """A heading and the text below it.

    Attributes:
        level: the heading's level; 0 for the text before the first heading.
        headings: the path of headings to this section, its own last, without the document's title.
        blocks: paragraphs, list items, code and table rows.
        has_parts: whether a deeper heading follows.
    """

    level: int = 0
    headings: tuple[str, ...] = ()
    blocks: list[str] = field(default_factory=list)
    has_parts: bool = False

    @property
    def text(self) -> str:
        """The section's text; the heading itself if neither text nor subsections follow it."""
        text = "\n\n".join(self.blocks)
        return text if text or self.has_parts or not self.headings else self.headings[-1]


class Outline:
    """Collects headings and blocks in document order.

    Args:
        title: a title from elsewhere, such as front matter.
        has_title: whether a first heading of level 1 may be the title.

    Attributes:
        title: the document's own title, or None.
        sections: the sections in order; the first has the text before all headings except the
            title's.
        highest: the number of headings of level 1.
    """

    def __init__(self, title: str | None = None, has_title: bool = True) -> None:
        self.title = title
        self.highest = 0
        self._has_title = has_title
        self.sections = [Section()]
        self._path: list[tuple[int, str]] = []
        self._has_heading = False

    def heading(self, level: int, text: str) -> None:
        """Begin a section, or set the title."""
        heading = " ".join(text.split())
        if not heading:
            return
        may_be_title = self._has_title and not self._has_heading and level == 1
        self._has_heading = True
        self.highest += level == 1
        if may_be_title and self.title in (None, heading):
            self.title = heading
            if len(heading) > _TITLE_CHARACTERS:
                self.block(heading)
            return
        while self._path and self._path[-1][0] >= level:
            self._path.pop()
        if self._path:
            self.sections[-1].has_parts |= self.sections[-1].level < level
        self._path.append((level, heading))
        self.sections.append(Section(level, tuple(name for _, name in self._path)))
        if len(heading) > _TITLE_CHARACTERS:
            self.block(heading)

    def block(self, text: str) -> None:
        """Add a block. One without word characters, such as the rest of a badge row, is dropped."""
        if _WORD_CHARACTER.search(text):
            self.sections[-1].blocks.append(text.strip("\n"))


def short(heading: str) -> str:
    """A heading, shortened to fit into a title."""
    if len(heading) <= _TITLE_CHARACTERS:
        return heading
    cut = heading[:_TITLE_CHARACTERS]
    return (cut.rpartition(" ")[0] or cut) + " …"
