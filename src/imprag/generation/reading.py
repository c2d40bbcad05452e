"""The passage KV that prompts read, weighed by the scores of their passages."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from imprag.model.kv import PassageKV, score_bias
from imprag.retrieval.retriever import LOGITS, RetrievedPassage

if TYPE_CHECKING:
    from imprag.pipeline import ImpRAG


NEGLIGIBLE = -12.0
"""The bias of a passage that is not read: its tokens would weigh e^-12 of the best one's."""


def read_passages(rag: "ImpRAG", found: Sequence[Sequence[RetrievedPassage]]) -> PassageKV:
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


def _biases(found: Sequence[RetrievedPassage], weight: float) -> list[float]:
    """The bias of each passage; 0 where scores mean something else than a logit."""
    if not all(one.kind in LOGITS for one in found):
        return [0.0] * len(found)
    return score_bias([one.score for one in found], weight)
