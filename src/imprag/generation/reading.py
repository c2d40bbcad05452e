"""What prompts read: the passage KV, weighed by scores, and how answers retrieve more of it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from imprag.errors import ImpRAGError
from imprag.model.kv import PassageKV, score_bias
from imprag.model.schedule import RetrievalSchedule
from imprag.retrieval.again import LaterSearch
from imprag.retrieval.retriever import LOGITS, RetrievedPassage, Retriever

if TYPE_CHECKING:
    from imprag.pipeline import ImpRAG


NEGLIGIBLE = -12.0
"""The bias of a passage that is not read: its tokens would weigh e^-12 of the best one's."""


def passage_kv(rag: "ImpRAG", found: Sequence[Sequence[RetrievedPassage]]) -> PassageKV:
    """The passage KV of every prompt, with the bias of its passages' scores.

    Passages that are encoded independently and whose bias is at most ``NEGLIGIBLE`` are not read:
    they take no time and have no tokens in the result.

    Args:
        rag: the pipeline with model and KV cache.
        found: the passages of each prompt.
    """
    weight = rag.config.attention_score_bias
    biases = [_biases(row, weight) for row in found]
    if not any(map(any, biases)):
        return rag.kv_cache.kv([[one.passage for one in row] for row in found])
    lowest = NEGLIGIBLE if rag.config.passage_encoding == "independent" else -math.inf
    read = [[bias > lowest for bias in row] for row in biases]
    kv = rag.kv_cache.kv(
        [
            [one.passage for one, is_read in zip(*row, strict=True) if is_read]
            for row in zip(found, read, strict=True)
        ]
    )
    lengths = [
        [next(tokens) if is_read else 0 for is_read in row]
        for row, tokens in zip(read, map(iter, kv.lengths), strict=True)
    ]
    return replace(kv, lengths=lengths, passage_bias=biases)


def later_search(
    rag: "ImpRAG",
    schedule: RetrievalSchedule,
    retriever: Retriever | None,
    k: int,
    read: Callable[[list[RetrievedPassage]], PassageKV],
) -> LaterSearch | None:
    """How answers retrieve again; None if they do not.

    Args:
        rag: the pipeline.
        schedule: the tokens that retrieve.
        retriever: None if nothing is retrieved.
        k: number of passages of each retrieval.
        read: the passage KV of one prompt's passages, a batch of one.

    Raises:
        ImpRAGError: the schedule asks for what nothing retrieves.
    """
    if not schedule.again:
        return None
    if retriever is None:
        raise ImpRAGError(
            "retrieve asks again, but nothing is retrieved: leave it out, or give a k above 0 and "
            "no passages"
        )
    decode = partial(rag.tokenizer.decode, skip_special_tokens=True)
    return LaterSearch(schedule, retriever, k, read, decode)


def _biases(found: Sequence[RetrievedPassage], weight: float) -> list[float]:
    """The bias of each passage; 0 where scores mean something else than a logit."""
    if not all(one.kind in LOGITS for one in found):
        return [0.0] * len(found)
    return score_bias([one.score for one in found], weight)
