"""Codecs: what comes back, how large it is, what they refuse."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from imprag.errors import ImpRAGError
from imprag.kv_cache.codecs.base import check_parts, untrained_codec
from imprag.kv_cache.codecs.pq import CENTROIDS, ProductQuantizer
from imprag.testing.codec import CodecSuite

SHAPE = (2, 3, 2)


def block(tokens: int = 40, head_dim: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    # Dimensions of different size and a vector that is nought, as real states have.
    states = torch.randn(*SHAPE, tokens, head_dim, generator=generator)
    states = states * torch.linspace(0.1, 5, head_dim)
    states[0, 0, 0, 0] = 0
    return states


def quantizer(tokens: int, head_dim: int = 16) -> ProductQuantizer:
    """One that has learned from a block of so many tokens."""
    codec = ProductQuantizer("pq", head_dim)
    codec.fit(block(tokens, head_dim))
    return codec


class TestBFloat16(CodecSuite):
    name = "bf16"
    largest_error = 1e-4


class TestFloat32(CodecSuite):
    name = "fp32"
    largest_error = 1e-4  # of bfloat16 states


class TestInt8(CodecSuite):
    name = "int8"
    largest_error = 1e-3


class TestPQ(CodecSuite):
    name = "pq"
    largest_error = 0.2


def test_floats_come_back_as_they_were() -> None:
    states = block()
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        codec = untrained_codec(name, 16)
        back = codec.decode(codec.encode(states), torch.float32)
        assert_close(back, states.to(dtype).float(), rtol=0, atol=0)


@given(st.integers(0, 1000), st.floats(1e-3, 1e3))
def test_integers_are_at_most_half_a_step_away(seed: int, size: float) -> None:
    states = block(seed=seed) * size
    codec = untrained_codec("int8", 16)
    back = codec.decode(codec.encode(states), torch.float32)
    step = states.abs().amax(dim=-1, keepdim=True) / 127
    # A scale in float16 is off by a two-thousandth, which the largest code multiplies.
    assert ((back - states).abs() <= step * (0.5 + 127 / 1024) + 1e-4).all()


class TestProductQuantizer:
    def test_codes_are_the_nearest_centroids(self) -> None:
        sample, pq = block(600), quantizer(600)
        codes = pq.encode(sample)["codes"]
        assert codes.shape == (2, 3, 2, 600, 4)
        learned = {name: x.double() for name, x in pq.learned.items()}
        assert learned["centroids"].shape == (2, 3, 2, 4, CENTROIDS, 4)

        def rotated(states: torch.Tensor) -> torch.Tensor:
            return (states.double() - learned["means"]) @ learned["transforms"]

        before, after = rotated(sample), rotated(pq.decode({"codes": codes}, torch.float32))
        for kind, layer, head, number in itertools.product(*map(range, (2, 3, 2, 4))):
            of_slice = (kind, layer, head, slice(None), slice(4 * number, 4 * number + 4))
            centroids = learned["centroids"][kind, layer, head, number]
            distances = torch.cdist(before[of_slice], centroids)
            found = (after[of_slice] - before[of_slice]).norm(dim=1)
            assert_close(found, distances.min(dim=1).values, rtol=1e-3, atol=1e-4)

    def test_components_keep_lengths_and_balance_slices(self) -> None:
        pq = quantizer(600)
        transforms = pq.learned["transforms"].double()
        unit = torch.eye(16).double().expand_as(transforms)
        assert_close(transforms.mT @ transforms, unit, rtol=0, atol=1e-5)
        components = (block(600).double() - pq.learned["means"]) @ transforms
        products = components.var(dim=3).unflatten(-1, (4, 4)).log().sum(-1)
        # Without a transform they span 19 nats: the channels of a block are of very different size.
        assert ((products.amax(-1) - products.amin(-1)) < 6).all()

    def test_errors_of_keys_are_small_where_queries_are_large(self) -> None:
        sample = block(2000)
        moments = torch.eye(16).expand(3, 2, 16, 16).clone()
        moments[..., 2, 2] = 1e4
        weighed = ProductQuantizer("pq", 16)
        weighed.weigh(moments)
        weighed.fit(sample)
        plain, lost = (
            (codec.decode(codec.encode(sample), torch.float32) - sample).square().mean((1, 2, 3))
            for codec in (quantizer(2000), weighed)
        )
        keys, values = lost / plain
        assert keys[2] < 0.05
        assert_close(values, torch.ones(16), rtol=0.05, atol=0)

    def test_what_is_alike_in_all_tokens_costs_nothing(self) -> None:
        states = block(600)
        pq, shifted = quantizer(600), ProductQuantizer("pq", 16)
        shifted.fit(states + 100)
        lost = [
            (codec.decode(codec.encode(one), torch.float32) - one).square().mean()
            for codec, one in ((pq, states), (shifted, states + 100))
        ]
        assert_close(lost[1], lost[0], rtol=0.02, atol=0)

    def test_it_loses_little(self) -> None:
        states, pq = block(2000), quantizer(2000)
        lost = pq.decode(pq.encode(states), torch.float32) - states
        assert lost.square().mean() / states.square().mean() < 0.15
        assert pq.bytes_per_vector == 4  # where bf16 has 32

    def test_too_small_a_sample_is_refused(self) -> None:
        with pytest.raises(ImpRAGError, match="choose int8"):
            quantizer(CENTROIDS - 1)

    def test_a_head_that_cannot_be_sliced_is_refused(self) -> None:
        with pytest.raises(ImpRAGError, match="the head size is 18"):
            quantizer(CENTROIDS, head_dim=18)

    def test_one_that_has_learned_nothing_says_so(self) -> None:
        parts = quantizer(CENTROIDS).encode(block(3))
        for code in (lambda pq: pq.encode(block(3)), lambda pq: pq.decode(parts, torch.float32)):
            with pytest.raises(ImpRAGError, match="no centroids yet: fit it to a sample"):
                code(untrained_codec("pq", 16))

    def test_centroids_of_another_head_size_are_refused(self) -> None:
        with pytest.raises(ValueError, match="are of other heads"):
            untrained_codec("pq", 32).load_state(quantizer(CENTROIDS).state())


def test_an_unknown_codec_is_named() -> None:
    message = "unknown codec 'zip'; known are bf16, fp32, .* entry-point group imprag.codecs"
    with pytest.raises(ImpRAGError, match=message):
        untrained_codec("zip", 16)


@pytest.mark.parametrize("name", ["texts", "starts"])
def test_parts_named_like_something_else_in_the_files_are_refused(name: str) -> None:
    with pytest.raises(ImpRAGError, match=f"names a part '{name}', which KV caches use"):
        check_parts({name: torch.zeros(2, 1, 1, 1, 1)})
