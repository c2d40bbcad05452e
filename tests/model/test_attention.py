"""Attention over passages and a prompt's own tokens."""

import pytest
import torch

from imprag.model import attention


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_a_long_prompt_attends_in_parts_as_a_whole(
    masked: bool, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, 10, 8) for heads in (6, 2, 2))
    mask = torch.ones(2, 1, 10, 10, dtype=torch.bool).tril() if masked else None
    if mask is not None:
        mask[1, :, :, :3] = False  # padding
    passages = {
        "passage_key": torch.randn(2, 2, 5, 8),
        "passage_value": torch.randn(2, 2, 5, 8),
        "passage_bias": torch.randn(2, 5) if biased else None,
    }

    def attended() -> torch.Tensor:
        layer = torch.nn.Module()
        return attention.reading_attention(layer, query, key, value, mask, **passages)[0]

    whole = attended()
    monkeypatch.setattr(attention, "_QUERIES", 4)
    torch.testing.assert_close(attended(), whole)
