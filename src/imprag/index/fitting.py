"""Passages longer than the model's limit: documents are split, other cuts are counted."""

import hashlib
import itertools
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from imprag.corpus import Corpus, Passage
from imprag.corpus.readers import JoinedReader, SkippedLines
from imprag.corpus.text import split_text
from imprag.errors import ImpRAGError
from imprag.index.manifest import IndexManifest
from imprag.index.states import CUT, CUT_TOKENS
from imprag.io.files import atomic_path, cache_dir, read_json, write_json
from imprag.io.locking import make_once

_COUNTS = ("max_passage_tokens", "passages", "tokens")
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
        of_passages: number of tokens that are cut from the end of each passage.
    """

    max_passage_tokens: int
    of_passages: "array[int]" = field(default_factory=lambda: array("i"))

    @property
    def passages(self) -> int:
        """Number of passages that are cut."""
        return sum(tokens > 0 for tokens in self.of_passages)

    @property
    def tokens(self) -> int:
        """Number of tokens that are cut, in all."""
        return sum(self.of_passages)

    def write(self, folder: Path, manifest: IndexManifest) -> None:
        """Write the counts into the folder of an index with that manifest."""
        with atomic_path(folder / CUT_TOKENS) as temporary, open(temporary, "wb") as stream:
            np.save(stream, np.array(self.of_passages, np.int32))
        counts = {name: getattr(self, name) for name in _COUNTS}
        write_json(folder / CUT, {**counts, **_made_from(manifest)})

    def __str__(self) -> str:
        return (
            f"passages longer than {self.max_passage_tokens} tokens: {self.passages:,}; the "
            f"{self.tokens:,} tokens at their ends are neither searched nor read (split such "
            "passages to keep them)"
        )


def read_cut(folder: Path) -> dict[str, int] | None:
    """The counts of an index folder; None if it has none."""
    found = read_json(folder / CUT) if (folder / CUT).is_file() else None
    return found and {name: found[name] for name in _COUNTS}


def read_cut_tokens(folder: Path, manifest: IndexManifest) -> npt.NDArray[np.int32] | None:
    """The number of tokens cut from each passage of an index, (passages,), memory-mapped.

    None if they were not counted for this very index.
    """
    try:
        if not _made_from(manifest).items() <= read_json(folder / CUT).items():
            return None
        tokens: npt.NDArray[np.int32] = np.load(folder / CUT_TOKENS, mmap_mode="r")
    except (ImpRAGError, OSError, ValueError):
        return None
    return tokens if tokens.shape == (manifest.count,) else None


def _made_from(manifest: IndexManifest) -> dict[str, str]:
    names = ("model_fingerprint", "corpus_fingerprint")
    return {name: getattr(manifest, name) for name in names}


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
        for passages in batches(iter(corpus)):
            tokens = encoder.cut_tokens(passages)
            cut.of_passages.extend(tokens)
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
    for passages in batches(iter(corpus)):
        cut.of_passages.extend(encoder.cut_tokens(passages))
    return cut


class _FittedPassages(JoinedReader):
    """The passages of a corpus, with documents split until the model cuts none of their parts."""

    def __init__(self, corpus: Corpus, encoder: Cutter) -> None:
        super().__init__([corpus])
        self.skipped = SkippedLines(**corpus.manifest["skipped"])
        self._corpus = corpus
        self._encoder = encoder

    def __iter__(self) -> Iterator[Passage]:
        for passages in batches(iter(self._corpus)):
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


def batches(passages: Iterator[Passage]) -> Iterator[list[Passage]]:
    """Passages, a thousand at a time."""
    while batch := list(itertools.islice(passages, _BATCH)):
        yield batch
