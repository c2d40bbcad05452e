"""Passages longer than the model's limit: documents are split, other cuts are counted."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tqdm import tqdm

from imprag.corpus import Corpus, Passage
from imprag.corpus.readers import JoinedReader, SkippedLines
from imprag.corpus.text import split_text
from imprag.index.states import CUT
from imprag.io.files import cache_dir, read_json, write_json
from imprag.io.locking import make_once

_BATCH = 1024
_MOST_WORDS = 64  # of the parts of a passage that was too long


@runtime_checkable
class Cutter(Protocol):
    """An encoder that cuts long passages, such as the model's."""

    @property
    def max_passage_tokens(self) -> int: ...

    def fingerprint(self) -> str: ...

    def cut_tokens(self, passages: Sequence[Passage]) -> list[int]: ...


@dataclass
class CutText:
    """The text of a corpus that a model does not see.

    Attributes:
        max_passage_tokens: longer passages are cut.
        passages: number of cut passages.
        tokens: number of tokens that are cut from their ends, in all.
    """

    max_passage_tokens: int
    passages: int = 0
    tokens: int = 0

    def count(self, cut: Sequence[int]) -> None:
        """Count the tokens that are cut from each of some passages."""
        self.passages += sum(tokens > 0 for tokens in cut)
        self.tokens += sum(cut)

    def write(self, folder: Path) -> None:
        """Write the counts into the folder of an index."""
        write_json(folder / CUT, asdict(self))

    def __str__(self) -> str:
        return (
            f"passages longer than {self.max_passage_tokens} tokens: {self.passages:,}; the "
            f"{self.tokens:,} tokens at their ends are neither searched nor read (split such "
            "passages to keep them)"
        )


def read_cut(folder: Path) -> dict[str, Any] | None:
    """The counts of an index folder; None if it has none."""
    return read_json(folder / CUT) if (folder / CUT).is_file() else None


def fit_documents(corpus: Corpus, encoder: Cutter) -> tuple[Corpus, CutText]:
    """Split passages of documents that are too long for a model, and count other cuts.

    Passages of documents (text, Markdown, reStructuredText) are parts of them already, so they may
    be split further; all others stay as they are.

    Args:
        corpus: the passages. It is not changed; a new corpus is built in the cache folder if any
            passage is split.
        encoder: the model's encoder.

    Returns:
        The corpus to index, and the text that is still cut.
    """
    cut = CutText(encoder.max_passage_tokens)
    may_fit = False
    progress = tqdm(total=len(corpus), desc="lengths", unit=" passages", delay=2, disable=None)
    with progress:
        for passages in _batches(iter(corpus)):
            tokens = encoder.cut_tokens(passages)
            cut.count(tokens)
            pairs = zip(passages, tokens, strict=True)
            may_fit = may_fit or any(lost and is_part(passage) for passage, lost in pairs)
            progress.update(len(passages))
    if not may_fit:
        return corpus, cut
    key = hashlib.sha256(f"{corpus.fingerprint} {encoder.fingerprint()}".encode()).hexdigest()
    folder = cache_dir() / "corpora" / f"fitted-{key[:16]}"
    fitted = _FittedPassages(corpus, encoder)

    def make() -> None:
        source, credit = (corpus.manifest[name] for name in ("source", "credit"))
        Corpus.build(fitted, folder, source=source, credit=credit)

    found = Corpus.open(make_once(folder, make))
    return found, count_cut(found, encoder)


def count_cut(corpus: Corpus, encoder: Cutter) -> CutText:
    """Count what a model cuts of a corpus."""
    cut = CutText(encoder.max_passage_tokens)
    for passages in _batches(iter(corpus)):
        cut.count(encoder.cut_tokens(passages))
    return cut


class _FittedPassages(JoinedReader):
    """The passages of a corpus, with documents split until the model cuts none of their parts."""

    def __init__(self, corpus: Corpus, encoder: Cutter) -> None:
        super().__init__([corpus])
        self.skipped = SkippedLines(**corpus.manifest["skipped"])
        self._corpus = corpus
        self._encoder = encoder

    def __iter__(self) -> Iterator[Passage]:
        for passages in _batches(iter(self._corpus)):
            tokens = self._encoder.cut_tokens(passages)
            for passage, lost in zip(passages, tokens, strict=True):
                yield from self._split(passage) if lost and is_part(passage) else [passage]

    def _split(self, passage: Passage) -> list[Passage]:
        words = _MOST_WORDS
        while True:
            parts = [
                replace(passage, id=f"{passage.id}.{number}", text=text)
                for number, text in enumerate(split_text(passage.text, words), 1)
            ]
            if words == 1 or not any(self._encoder.cut_tokens(parts)):
                return parts
            words //= 2


def is_part(passage: Passage) -> bool:
    """Whether a passage is part of a document, with an id that ImpRAG made."""
    return passage.id.rpartition("/")[0] == passage.meta.get("file")


def _batches(passages: Iterator[Passage]) -> Iterator[list[Passage]]:
    while batch := list(itertools.islice(passages, _BATCH)):
        yield batch
