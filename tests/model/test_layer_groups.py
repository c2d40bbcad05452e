"""The model pieces against references: the plain LM, the paper's formulas, one row at a time."""

import pytest
import torch
from conftest import tiny_lm
from torch import Tensor

from imprag.errors import ImpRAGError
from imprag.model.config import ImpRAGConfig
from imprag.model.layer_groups import LayerGroups, pad

CPU = torch.device("cpu")


def groups_of(family: str = "llama", *, layers: int = 6, **settings: object) -> LayerGroups:
    values = {"b": 1, "t": 3, "k": 3, "max_passage_tokens": 16, **settings}
    return LayerGroups(tiny_lm(family, layers), ImpRAGConfig(base_model=family, **values))


def tokens(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 97, (n,), generator=generator).tolist() for n in lengths]


def read(groups: LayerGroups, prompts: list[list[int]], passages: list[list[list[int]]], **kw):
    """Logits of each prompt's own tokens, one tensor per prompt."""
    ids, mask = pad(prompts, CPU, left=True)
    shift = torch.tensor([len(p) * groups.config.max_passage_tokens for p in passages])
    output = groups(ids, mask, groups.encode_passages(passages, **kw), position_shift=shift)
    return [row[-len(prompt) :] for row, prompt in zip(output.logits, prompts, strict=True)]


@torch.no_grad()
def test_reading_everything_is_in_context_rag(family: str) -> None:
    """b=0, t=N-1, full encoding, contiguous positions: the plain LM on the concatenated text."""
    layers = 4
    plain = tiny_lm(family, layers)
    groups = groups_of(family, layers=layers, b=0, t=layers - 1)
    passages, (prompt,) = tokens(9, 5, 12), tokens(7, seed=1)
    context = sum(passages, [])
    expected = plain(torch.tensor([context + prompt])).logits[0, -len(prompt) :]
    ids, mask = pad([prompt], CPU)
    prefix = groups.encode_passages([passages], "full")
    actual = groups(ids, mask, prefix, position_shift=len(context)).logits[0]
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)

    greedy = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    expected_tokens = plain.generate(torch.tensor([context + prompt]), **greedy)
    actual_tokens = groups.generate(ids, mask, prefix, position_shift=len(context), **greedy)
    assert actual_tokens[0, len(prompt) :].tolist() == expected_tokens[0, -12:].tolist()
