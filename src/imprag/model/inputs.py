"""Token ids as a model takes them: padded rows, their masks and positions."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def last_tokens(attention_mask: Tensor) -> Tensor:
    """(batch,) index of each row's last token, wherever the padding stands."""
    places = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (attention_mask.bool() * places).amax(dim=1)


def positions(attention_mask: Tensor, shift: Tensor | int) -> Tensor:
    """(batch, length) positions that count each row's tokens from ``shift`` on."""
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
