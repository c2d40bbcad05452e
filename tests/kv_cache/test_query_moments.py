"""The second moments of queries."""

import pytest
import torch
from test_kv_cache import tiny_imprag_model
from torch.testing import assert_close

from conftest import tiny_tokenizer
from imprag.corpus import Passage
from imprag.kv_cache.query_moments import query_moments
from imprag.model.hooks import RecordingLayer, capture
from imprag.model.inputs import pad
from imprag.model.text import passage_tokens

PASSAGE = Passage("p", "w1", "w7 w8 w9 w10 w11")


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_moments_are_those_of_queries_at_the_distances_of_prompts(family: str) -> None:
    model = tiny_imprag_model(family)
    rows = passage_tokens(model_tokenizer := tiny_tokenizer(), model.config, [PASSAGE])
    ids, mask = pad(rows, torch.device("cpu"))
    expected = torch.zeros(3, 2, 16, 16)
    for token in range(len(rows[0])):
        # At position 3 * 16 - token, which is its distance from a key at position 0.
        recorders = {n: RecordingLayer(model.decoder.layer(n)) for n in (1, 2, 3)}
        model.decoder.run(recorders, 4, ids, mask, 3 * 16 - 2 * token)
        for layer, recorder in recorders.items():
            queries = capture(model.decoder.layer(layer), recorder.input, stop=True).query
            for head in range(6):
                query = queries[0, head, token]
                expected[layer - 1, head // 3] += torch.outer(query, query)
    found = query_moments(model, model_tokenizer, [PASSAGE])
    assert_close(found, expected / (3 * len(rows[0]) * 16), rtol=1e-4, atol=1e-5)


def test_an_error_costs_what_moments_say() -> None:
    model = tiny_imprag_model()
    moments = query_moments(model, tiny_tokenizer(), [PASSAGE])
    assert_close(moments, moments.mT)
    assert (torch.linalg.eigvalsh(moments) > -1e-5).all()
