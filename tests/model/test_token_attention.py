"""The attention that a prompt's last token pays to its tokens, held against transformers' own."""

import pytest
import torch

from conftest import tiny_lm
from imprag.model import ImpRAGConfig, ImpRAGModel
from imprag.model.generate import fixed
from imprag.model.inputs import pad
from imprag.model.query import Queries, queries

CPU = torch.device("cpu")
ROWS = [[5, 9, 20, 31, 8, 77], [3, 4, 5], [50]]


def model_of(family: str = "llama", b: int = 3) -> ImpRAGModel:
    config = ImpRAGConfig(base_model="tiny", b=b, t=4, k=2, max_passage_tokens=16)
    return ImpRAGModel(tiny_lm(family), config)


def expected(family: str, row: list[int], layer: int) -> torch.Tensor:
    """The mean over the heads, with the first token's attention replaced by the others' mean."""
    lm = tiny_lm(family)
    lm.set_attn_implementation("eager")
    found = lm(torch.tensor([row]), output_attentions=True).attentions[layer][0, :, -1].mean(0)
    found[0] = found[1:].mean() if len(row) > 1 else 0.0
    return found


# Gemma 2 caps its attention logits, which the weights of words leave out.
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "cohere", "granite", "phi3"])
@pytest.mark.parametrize("left", [True, False])
@torch.inference_mode()
def test_it_is_the_models_attention_at_layer_b_minus_2(family: str, left: bool) -> None:
    model = model_of(family)
    ids, mask = pad(ROWS, CPU, left=left)
    asked = queries(model.decoder, ids, mask)
    torch.testing.assert_close(asked.embeddings, model.query_embeddings(ids, mask))
    attention = asked.token_attention()
    for row, found, seen in zip(ROWS, attention, mask.bool(), strict=True):
        torch.testing.assert_close(found[seen], expected(family, row, 1), atol=1e-5, rtol=1e-4)
        assert found[~seen].eq(0).all()


@pytest.mark.parametrize("b", [0, 1, 2, 3])
@torch.inference_mode()
def test_a_pass_that_generates_knows_it_too(b: int) -> None:
    model = model_of(b=b)
    ids, mask = pad(ROWS, CPU, left=True)
    alone = queries(model.decoder, ids, mask)
    passages = model.encode_passages([[[5, 6, 7]]] * 3)
    met: list[torch.Tensor] = []

    def retrieve(asked: Queries):
        met.append(asked.token_attention())
        return passages

    settings = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    plain = model.generate(ids, mask, fixed(passages), position_shift=16, **settings)
    for beams in (1, 2):
        tokens = model.generate(ids, mask, retrieve, position_shift=16, num_beams=beams, **settings)
        if beams == 1:  # looking at the attention changes no token
            assert tokens.tolist() == plain.tolist()
    for attention in met:
        torch.testing.assert_close(attention, alone.token_attention(), atol=1e-5, rtol=1e-4)
