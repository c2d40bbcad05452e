"""From passages and prompts to token ids, the same way in training, indexing and search."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from imprag.corpus.passage import Passage
from imprag.errors import ImpRAGError
from imprag.model.config import ImpRAGConfig
from imprag.model.inputs import pad


def passage_tokens(
    tokenizer: Any, config: ImpRAGConfig, passages: Sequence[Passage]
) -> list[list[int]]:
    """Token ids of passages in the configured template, at most ``max_passage_tokens`` each.

    What is too long loses the end of its text; what the template puts behind the text stays. A
    title has at most half of the tokens.
    """
    return [row for row, _ in _cut_rows(tokenizer, config, passages)]


def cut_tokens(tokenizer: Any, config: ImpRAGConfig, passages: Sequence[Passage]) -> list[int]:
    """How many tokens of each passage :func:`passage_tokens` leaves out."""
    return [cut for _, cut in _cut_rows(tokenizer, config, passages)]


def _cut_rows(
    tokenizer: Any, config: ImpRAGConfig, passages: Sequence[Passage]
) -> list[tuple[list[int], int]]:
    """Token ids of passages, and how many more there would be without the limit."""
    if not passages:
        return []
    limit = config.max_passage_tokens
    before, after = config.passage_template.split("{text}")
    titles = [_short_title(tokenizer, p.title, limit // 2) for p in passages]
    pairs = list(zip(passages, titles, strict=True))
    heads = [before.replace("{title}", title) + p.text for p, (title, _) in pairs]
    tails = [after.replace("{title}", title) for title, _ in titles]
    end = [tokenizer.eos_token_id] if config.pooling_point == "eos" else []
    rows = []
    encoded = zip(_encode(tokenizer, heads), _encode(tokenizer, tails), titles, strict=True)
    for head, tail, (_, cut_title) in encoded:
        tail = (tail + end)[-(limit // 2) :]
        room = limit - len(tail)
        head = _start(tokenizer) + head
        rows.append((head[:room] + tail, max(0, len(head) - room) + cut_title))
    return rows


def _short_title(tokenizer: Any, title: str, room: int) -> tuple[str, int]:
    """The beginning of a title that fits into ``room`` tokens, and how many tokens are cut."""
    if len(title.encode(errors="replace")) <= room:
        return title, 0
    length = len(_encode(tokenizer, [title])[0])
    kept, tokens = title, length
    while tokens > room:
        kept = kept[: min(len(kept) - 1, len(kept) * room // tokens)]
        tokens = len(_encode(tokenizer, [kept])[0])
    return kept, length - tokens


def prompt_tokens(tokenizer: Any, prompts: Sequence[str], limit: int) -> list[list[int]]:
    """Token ids of prompts, each ending with its own last token.

    Args:
        tokenizer: the model's.
        prompts: texts; white space at their ends is dropped.
        limit: tokens that a prompt may have.

    Raises:
        ImpRAGError: a prompt is empty or too long.
    """
    rows = []
    for number, prompt in enumerate(prompts, start=1):
        name = "the prompt" if len(prompts) == 1 else f"prompt {number}"
        text = prompt.strip()
        if not text:
            raise ImpRAGError(f"{name} is empty; ask something, such as 'Q: who ...? A:'")
        row = _start(tokenizer) + _encode(tokenizer, [text])[0]
        if len(row) > limit:
            raise ImpRAGError(
                f"{name} has {len(row)} tokens, but only {limit} fit beside the passages and the "
                "answer; shorten it, or lower k or max_new_tokens"
            )
        rows.append(row)
    return rows


def prompt_batch(
    tokenizer: Any, prompts: Sequence[str], limit: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Prompts as left-padded ``input_ids`` and ``attention_mask``, (prompts, longest)."""
    rows = prompt_tokens(tokenizer, prompts, limit)
    return pad(rows, device, left=True, token=tokenizer.pad_token_id or 0)


def response_tokens(tokenizer: Any, response: str) -> list[int]:
    """Token ids of what should follow a prompt, with the token that ends it."""
    end = tokenizer.eos_token_id
    return _encode(tokenizer, [response])[0] + ([] if end is None else [end])


def _encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return ids


def _start(tokenizer: Any) -> list[int]:
    """The token that the model expects before every text, if it has one."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("")["input_ids"][:1] == [bos] else []
