"""One passage of a corpus."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of text that can be retrieved and read.

    Attributes:
        id: unique within its corpus.
        title: of the article or section that the text comes from; may be empty.
        text: about 100 words; never empty.
        meta: free, JSON-like metadata of the source.
    """

    id: str
    title: str
    text: str
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def subject(self) -> str:
        """What the passage is about: its title, without the section that the metadata name."""
        section = self.meta.get("section")
        return self.title.removesuffix(f", {section}") if section else self.title
