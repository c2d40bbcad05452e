"""One passage of a corpus."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


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


#: A hash of 128 bits.
TEXT_HASH = np.dtype([("low", "<i8"), ("high", "<i8")])
TextHashes = npt.NDArray[np.void]


def text_of(passage: Passage) -> tuple[str, str]:
    """The part of a passage that its embedding, keys and values depend on: title and text."""
    return passage.title, passage.text


def text_hashes(passages: Sequence[Passage]) -> TextHashes:
    """Hashes of passages' titles and texts, (len(passages),) of `TEXT_HASH`."""
    return np.frombuffer(bytearray().join(map(_text_hash, passages)), TEXT_HASH)


def _text_hash(passage: Passage) -> bytes:
    title = passage.title.encode()
    data = len(title).to_bytes(8, "little") + title + passage.text.encode()
    return hashlib.blake2b(data, digest_size=16).digest()


class KnownTexts:
    """Finds passages by their title and text among many.

    Args:
        hashes: of the known texts, in order.
    """

    def __init__(self, hashes: TextHashes) -> None:
        self._order = np.argsort(hashes["low"], kind="stable")
        self._hashes = hashes[self._order]

    def find(self, passages: Sequence[Passage]) -> npt.NDArray[np.int64]:
        """The first place of each passage's text, (len(passages),); -1 where it is not known."""
        wanted = text_hashes(passages)
        at = np.searchsorted(self._hashes["low"], wanted["low"])
        at[at == len(self._hashes)] = 0
        return np.where(self._hashes[at] == wanted, self._order[at], -1)
