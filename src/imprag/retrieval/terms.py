"""The words of a prompt, weighted by the attention that the prompt's last token pays to them.

A long prompt has many words that are not what is asked about. The model knows which ones matter:
a term weighs (a / mean a) ** 0.5, where a is the attention of its tokens, summed.
"""

import itertools
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import regex  # type: ignore[import-untyped]
from torch import Tensor

from imprag.corpus.words import search_terms
from imprag.index.lexical import Terms, query_terms
from imprag.model.chat import ChatPrompt
from imprag.model.control_tokens import text_offsets
from imprag.model.schedule import ContinuedPrompt
from imprag.model.text import text_read

_EXPONENT = 0.5
_LEAST = 0.01  # of the greatest weight; terms below are dropped
# A superset of the terms' characters: marks, joiners and signs such as "℃" belong to their word.
_WORD = regex.compile(r"[\w\p{N}\p{M}\p{Cf}\p{So}]+")


def prompt_terms(
    tokenizer: Any, prompts: Sequence[str], input_ids: Tensor, attention: Tensor
) -> list[Terms]:
    """The weighted terms of prompts, without those of the template that a prompt is put into.

    If the tokenizer cannot tell which characters a token stands for, terms weigh as often as they
    occur.

    Args:
        tokenizer: the model's tokenizer.
        prompts: the texts.
        input_ids: their tokens, (prompts, length).
        attention: of each prompt's last token to all of them, (prompts, length or more).
    """
    # The tokens may stand in a wider batch, whose padding is on the left.
    attention = attention[:, attention.shape[1] - input_ids.shape[1] :]
    rows = zip(prompts, input_ids.tolist(), attention.tolist(), strict=True)
    return [_terms(tokenizer, prompt, ids, weights) for prompt, ids, weights in rows]


def _terms(tokenizer: Any, prompt: str, ids: list[int], attention: list[float]) -> Terms:
    own = query_terms(prompt)
    written: Sequence[int] = ()
    if isinstance(prompt, ContinuedPrompt):
        written = prompt.tokens
        prompt = prompt.prompt
    text = (prompt if isinstance(prompt, ChatPrompt) else text_read(tokenizer, prompt)).strip()
    own_ids, offsets = text_offsets(tokenizer, text)
    start = _place(own_ids, ids[: len(ids) - len(written)])
    if start is None or not own_ids:
        return own
    paid = attention[start : start + len(own_ids)]
    if written:
        text, places = _continued(tokenizer, text, written)
        offsets, paid = [*offsets, *places], [*paid, *attention[len(ids) - len(written) :]]
    weights = weighted_terms(text, offsets, paid)
    return {term: weight for term, weight in weights.items() if term in own}


def _continued(
    tokenizer: Any, text: str, tokens: Sequence[int]
) -> tuple[str, list[tuple[int, int]]]:
    """A text with what was written after it, and the characters that each new token stands for."""
    texts = [
        tokenizer.decode(tokens[:n], skip_special_tokens=True) for n in range(1, len(tokens) + 1)
    ]
    ends = [len(text) + 1 + len(one) for one in texts]
    places = list(itertools.pairwise([len(text) + 1, *ends]))
    return f"{text} {texts[-1]}", places


def weighted_terms(
    text: str, offsets: Sequence[tuple[int, int]], attention: Sequence[float]
) -> Terms:
    """The terms of a text with their weights, whose mean is near 1.

    Args:
        text: the text.
        offsets: start and end of every token in it.
        attention: paid to every token.
    """
    words = list(_WORD.finditer(text))
    ends = [word.end() for word in words]
    shares = [0.0] * len(words)
    for (start, end), share in zip(offsets, attention, strict=True):
        for n in range(bisect_right(ends, start), len(words)):
            if words[n].start() >= end:
                break
            shares[n] += share
    paid: dict[str, float] = defaultdict(float)
    for word, share in zip(words, shares, strict=True):
        terms = search_terms(word[0])
        for term in terms:
            paid[term] += share / len(terms)
    if not sum(paid.values()):
        return query_terms(text)
    mean = sum(paid.values()) / len(paid)
    weights = {term: (share / mean) ** _EXPONENT for term, share in paid.items()}
    least = _LEAST * max(weights.values())
    return {term: weight for term, weight in weights.items() if weight > least}


def _place(part: list[int], whole: list[int]) -> int | None:
    """Where the last occurrence of one list in another begins."""
    places = range(len(whole) - len(part), -1, -1)
    return next((at for at in places if whole[at : at + len(part)] == part), None)
