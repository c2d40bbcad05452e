"""Teacher labels for warmup: the ranks of an existing text retriever for training prompts."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from imprag.corpus import Corpus
from imprag.errors import ImpRAGError
from imprag.io.files import atomic_path, cache_dir
from imprag.retrieval.dense import DenseRetriever, load_encoder
from imprag.retrieval.lexical import LexicalRetriever
from imprag.retrieval.retriever import RetrievedPassage

_BLOCK = 1024  # prompts in a file of the cache


class TextRetriever(Protocol):
    """Whatever ranks the passages of a corpus by a text, such as a `DenseRetriever`."""

    corpus: Corpus

    def retrieve(self, prompts: Sequence[str], k: int) -> list[list[RetrievedPassage]]: ...

    def settings(self) -> Mapping[str, Any]: ...

    def fingerprint(self) -> str: ...

    def rank(
        self, prompts: Sequence[str], k: int, /
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]: ...


def load_retriever(name: str, corpus: Corpus) -> TextRetriever:
    """``bm25``, or an encoder for `load_encoder` by its name or path, over a corpus.

    Raises:
        ImpRAGError: the bi-encoder is missing.
    """
    if name == "bm25":
        return LexicalRetriever(corpus)
    return DenseRetriever(corpus, load_encoder(name))


def label_prompts(
    retriever: TextRetriever, prompts: Sequence[str], depth: int = 50
) -> npt.NDArray[np.int32]:
    """Rank the corpus for each prompt; the whole prompt is the query, as in the paper.

    Ranks are cached in blocks of prompts: a rerun after an interruption reuses finished blocks. A
    block's name is a hash of everything that its ranks depend on.

    Args:
        retriever: the teacher.
        prompts: prompts of the training examples.
        depth: ranks for each prompt; at most the size of the corpus.

    Returns:
        Rows of the corpus, best first, (prompts, depth) int32.

    Raises:
        ImpRAGError: a block is damaged or cannot be written.
    """
    depth = min(depth, len(retriever.corpus))
    fingerprint = retriever.fingerprint()
    rows = np.empty((len(prompts), depth), np.int32)
    bar = tqdm(total=len(prompts), desc="teacher", unit=" prompts", delay=2, disable=None)
    with bar:
        for start in range(0, len(prompts), _BLOCK):
            block = slice(start, start + _BLOCK)
            rows[block] = _block(retriever, fingerprint, prompts[block], depth)
            bar.update(len(prompts[block]))
    return rows


def _block(
    retriever: TextRetriever, fingerprint: str, prompts: Sequence[str], depth: int
) -> npt.NDArray[np.int32]:
    """The ranks of one block, from the cache if it holds them; otherwise computed and cached."""
    content = json.dumps([fingerprint, depth, *prompts])
    key = hashlib.sha256(content.encode()).hexdigest()[:32]
    path = cache_dir() / "teacher" / f"{key}.safetensors"
    if not path.is_file():
        rows, _ = retriever.rank(prompts, depth)
        with atomic_path(path) as temporary:
            save_file({"rows": rows.astype(np.int32)}, temporary)
    return _read(path, (len(prompts), depth))


def _read(path: Path, shape: tuple[int, int]) -> npt.NDArray[np.int32]:
    try:
        rows = load_file(path).get("rows")
    except (OSError, SafetensorError) as error:
        raise ImpRAGError(f"{path} is damaged ({error}); delete it") from error
    if rows is None or rows.shape != shape:
        raise ImpRAGError(f"{path} does not hold the teacher's ranks; delete it")
    return rows
