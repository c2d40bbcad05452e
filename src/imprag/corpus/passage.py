"""One passage of a corpus."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of text that can be retrieved and read.

    Attributes:
        id: unique within its corpus.
        title: the title of the article or section that the text comes from; may be empty.
        text: the text, usually about 100 words; never empty.
        meta: any JSON-like metadata of the source.
    """

    id: str
    title: str
    text: str
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def subject(self) -> str:
        """The passage's subject: its title without the section that ``meta`` names."""
        section = self.meta.get("section")
        return self.title.removesuffix(f", {section}") if section else self.title
