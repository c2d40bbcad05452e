"""Embeddings of queries and passages, computed in small batches between the engine's steps."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from imprag.corpus import Passage
from imprag.errors import ImpRAGError
from imprag.model.text import cut_tokens, passage_tokens, prompt_batch
from imprag.serving.service import Service

T = TypeVar("T")
FloatArray = npt.NDArray[np.float32]
_BATCH = 8


def embed_queries(service: Service, texts: Sequence[str]) -> tuple[FloatArray, int]:
    """Query embeddings of texts, the score scale included, and their number of tokens.

    An inner product with a passage's embedding is the passage's score.

    Raises:
        ImpRAGError: a text is empty or too long.
    """
    rag, tokens = service.rag, 0
    limit = rag.model.positions_limit
    embedded = [np.empty((0, rag.encoder.dimension), np.float32)]
    for batch in _batches(texts):
        with service.lock, torch.inference_mode():
            prompts = rag.asked_prompts(batch)
            ids, mask = prompt_batch(rag.tokenizer, prompts, limit, rag.model.device)
            embedded.append(rag.model.query_embeddings(ids, mask).float().cpu().numpy())
        tokens += int(mask.sum())
    return np.concatenate(embedded), tokens


def embed_passages(
    service: Service, passages: Sequence[Passage], name: str
) -> tuple[FloatArray, int]:
    """Embeddings of passages, as an index stores them, and their number of tokens.

    Raises:
        ImpRAGError: a passage is longer than the model reads.
    """
    rag, tokens = service.rag, 0
    check_passages_fit(service, passages, name)
    embedded = [np.empty((0, rag.encoder.dimension), np.float32)]
    for batch in _batches(passages):
        with service.lock:
            tokens += sum(map(len, passage_tokens(rag.tokenizer, rag.config, batch)))
            embedded.append(rag.encoder(batch))
    return np.concatenate(embedded), tokens


def check_passages_fit(service: Service, passages: Sequence[Passage], name: str) -> None:
    """Refuse passages whose end would be cut off.

    Raises:
        ImpRAGError: a passage is longer than the model reads.
    """
    rag, cut = service.rag, list[int]()
    for batch in _batches(passages):
        with service.lock:
            cut += cut_tokens(rag.tokenizer, rag.config, batch)
    limit = rag.config.max_passage_tokens
    for number, tokens in enumerate(cut):
        if tokens:
            raise ImpRAGError(
                f"{name}[{number}] has {tokens} tokens more than the {limit} that the model reads "
                "of a passage; split it"
            )


def text_of_tokens(service: Service, tokens: Sequence[int]) -> str:
    """The text that tokens of the model's tokenizer stand for.

    Raises:
        ImpRAGError: there is no such token.
    """
    size = len(service.rag.tokenizer)
    if max(tokens) >= size:
        raise ImpRAGError(
            f"the input has the token {max(tokens)}, but this model's are 0 to {size - 1}; send "
            "texts, or tokens of this model's tokenizer"
        )
    with service.lock:
        text: str = service.rag.tokenizer.decode(tokens, skip_special_tokens=True)
    return text


def _batches(items: Sequence[T]) -> list[Sequence[T]]:
    return [items[start : start + _BATCH] for start in range(0, len(items), _BATCH)]
