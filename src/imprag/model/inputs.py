"""Model inputs from token ids: padded rows, masks and positions."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor


def last_tokens(attention_mask: Tensor) -> Tensor:
    """Index of each row's last token, (batch,), whatever the side of the padding."""
    places = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (attention_mask.bool() * places).amax(dim=1)


def positions(attention_mask: Tensor, shift: Tensor | int) -> Tensor:
    """Positions that count each row's tokens from ``shift`` on, (batch, length)."""
    counted = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
    return counted + (shift[:, None] if isinstance(shift, Tensor) else shift)


def pad(
    rows: Iterable[Sequence[int]], device: torch.device, *, left: bool = False, token: int = 0
) -> tuple[Tensor, Tensor]:
    """Token ids of different lengths as ``input_ids`` and ``attention_mask``, (rows, longest)."""
    rows = list(rows)
    longest = max(map(len, rows))
    gaps = [longest - len(row) for row in rows]
    filled = [([token] * gap, list(row)) for gap, row in zip(gaps, rows, strict=True)]
    marked = [([0] * gap, [1] * len(row)) for gap, row in zip(gaps, rows, strict=True)]
    both = [
        torch.tensor([gap + row if left else row + gap for gap, row in pairs], device=device)
        for pairs in (filled, marked)
    ]
    return both[0], both[1]


def batches_by_length(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Group rows of similar length, at the lowest cost.

    A group costs its tokens, padding included, plus a sixteenth of ``batch_tokens``, so there is
    neither much padding nor many small groups.

    Args:
        lengths: the rows' lengths.
        batch_tokens: greatest number of tokens in a padded group; a longer row is alone.

    Returns:
        the indices of each group's rows.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    cost = np.zeros(len(order) + 1)  # of the first so many rows in order
    starts = [0]  # of the last group among them
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        first = min(end - 1, max(0, end - batch_tokens // max(longest, 1)))
        cost_of = cost[first:end] + np.arange(end - first, 0, -1) * longest
        least = int(cost_of.argmin())
        cost[end] = cost_of[least] + batch_tokens / 16
        starts.append(first + least)
    groups = []
    end = len(order)
    while end:
        groups.append(order[starts[end] : end])
        end = starts[end]
    return groups[::-1]


def by_length(texts: Sequence[str], size: int) -> Iterator[list[int]]:
    """Numbers of texts in batches of like length, the longest first: little is padded."""
    order = sorted(range(len(texts)), key=lambda n: -len(texts[n]))
    for start in range(0, len(texts), size):
        yield order[start : start + size]
