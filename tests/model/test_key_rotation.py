"""Keys from before the rotary embedding, and back."""

from dataclasses import replace

import pytest
import torch
from test_support import lm_of
from torch.testing import assert_close

from conftest import tiny_lm
from imprag.model import ImpRAGConfig, ImpRAGModel
from imprag.model.hooks import RecordingLayer, capture
from imprag.model.inputs import pad
from imprag.model.key_rotation import KeyRotation, passage_positions

CONFIG = ImpRAGConfig(base_model="tiny", b=1, t=4, k=3, max_passage_tokens=16)
PASSAGE = [list(range(5, 18))]


def key_rotation(lm) -> KeyRotation:
    return ImpRAGModel(lm, CONFIG).key_rotation


def states_before_and_after(model: ImpRAGModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys of a passage before and after the rotary embedding, (layers, key heads, tokens, d_h)."""
    layers = range(CONFIG.b, CONFIG.t + 1)
    recorders = {number: RecordingLayer(model.decoder.layer(number)) for number in layers}
    model.decoder.run(recorders, CONFIG.t + 1, *pad(PASSAGE, torch.device("cpu")))
    given = [recorders[number].input for number in layers]

    def keys(turned: bool) -> torch.Tensor:
        inputs = given if turned else [one.without_rotation() for one in given]
        pairs = zip(layers, inputs, strict=True)
        return torch.cat([capture(model.decoder.layer(n), x, stop=True).key for n, x in pairs])

    return keys(False), keys(True)


@torch.no_grad()
def test_keys_are_rotated_back_to_those_before_the_rotary_embedding(family: str) -> None:
    model = ImpRAGModel(tiny_lm(family), CONFIG)
    before, after = states_before_and_after(model)
    assert (before - after).abs().max() > 0.1
    undone = model.key_rotation.undo(after, torch.arange(13))
    if family != "smollm3":  # every fourth of its layers has no rotary embedding
        assert_close(undone, before, rtol=1e-4, atol=1e-5)
    assert_close(model.key_rotation.rotate(undone, torch.arange(13)), after, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt_neox", "phi", "glm"])
def test_keys_of_which_a_part_is_rotated(family: str) -> None:
    kept = {"num_key_value_heads": ..., "head_dim": ...} if family == "gpt_neox" else {}
    model = ImpRAGModel(lm_of(family, **kept), CONFIG)
    before, after = states_before_and_after(model)
    undone = model.key_rotation.undo(after, torch.arange(13))
    assert_close(undone, before, rtol=1e-4, atol=1e-5)
    assert_close(model.key_rotation.rotate(undone, torch.arange(13)), after, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_keys_that_the_embedding_scales_come_back() -> None:
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}
    rope["original_max_position_embeddings"] = 256
    rotation = key_rotation(lm_of("llama", rope_parameters=rope))
    keys = torch.randn(4, 2, 13, 16)
    scaled = rotation.rotate(keys, torch.arange(13))
    assert scaled.norm() > 1.05 * keys.norm()
    assert_close(rotation.undo(scaled, torch.arange(13)), keys)


@torch.no_grad()
def test_positions_begin_at_every_passage_and_layers_can_be_rotated_alone() -> None:
    rotation = key_rotation(tiny_lm())
    keys = torch.randn(4, 2, 20, 16)
    together = rotation.rotate(keys, passage_positions([13, 7]))
    apart = [
        rotation.rotate(part, torch.arange(part.shape[2])) for part in keys.split([13, 7], dim=2)
    ]
    assert_close(torch.cat(apart, dim=2), together)
    for layer in range(4):
        one = slice(layer, layer + 1)
        assert_close(rotation.rotate(keys[one], passage_positions([13, 7]), one), together[one])
    assert rotation.rotate(keys[:, :, :0], passage_positions([])).shape == (4, 2, 0, 16)


@torch.no_grad()
def test_a_longer_passage_than_configured_is_rotated() -> None:
    model = ImpRAGModel(tiny_lm(), CONFIG)
    longer = ImpRAGModel(model.lm, replace(CONFIG, max_passage_tokens=64))
    keys = torch.randn(4, 2, 40, 16)
    found, expected = (x.key_rotation.rotate(keys, torch.arange(40)) for x in (model, longer))
    assert_close(found, expected)
