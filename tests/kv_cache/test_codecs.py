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


class TestInt4(CodecSuite):
    name = "int4"


class TestPQ(CodecSuite):
    name = "pq"
    largest_error = 0.2


def test_floats_come_back_as_they_were() -> None:
    states = block()
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        codec = untrained_codec(name, 16)
        back = codec.decode(codec.encode(states), torch.float32)
        assert_close(back, states.to(dtype).float(), rtol=0, atol=0)


@given(
    st.sampled_from([("int8", 127), ("int4", 7)]),
    st.integers(0, 1000),
    st.floats(1e-3, 1e3),
)
def test_integers_are_at_most_half_a_step_away(
    codec_and_levels: tuple[str, int], seed: int, size: float
) -> None:
    name, levels = codec_and_levels
    states = block(seed=seed) * size
    codec = untrained_codec(name, 16)
    back = codec.decode(codec.encode(states), torch.float32)
    step = states.abs().amax(dim=-1, keepdim=True) / levels
    # A scale in float16 is off by a two-thousandth, which the largest code multiplies.
    assert ((back - states).abs() <= step * (0.5 + levels / 1024) + 1e-4).all()


class TestProductQuantizer:
    def test_codes_are_the_nearest_centroids(self) -> None:
        sample, pq = block(600), quantizer(600)
        codes = pq.encode(sample)
        back = pq.decode(codes, torch.float32)
        for place, (kind, size) in enumerate((("keys", 2), ("values", 8))):
            centroids = pq.centroids[kind].double()
            assert codes[kind].shape == (1, 3, 2, 600, 16 // size)
            assert centroids.shape == (3, 2, 16 // size, CENTROIDS, size)
            for layer, head, number in itertools.product(range(3), range(2), range(16 // size)):
                of_slice = slice(number * size, (number + 1) * size)
                vectors = sample[place, layer, head, :, of_slice].double()
                nearest = torch.cdist(vectors, centroids[layer, head, number]).min(dim=1)
                decoded = back[place, layer, head, :, of_slice].double()
                assert_close((decoded - vectors).norm(dim=1), nearest.values, rtol=1e-3, atol=1e-4)

    def test_it_loses_little(self) -> None:
        states, pq = block(2000), quantizer(2000)
        lost = pq.decode(pq.encode(states), torch.float32) - states
        keys, values = lost.square().mean(dim=(1, 2, 3, 4)) / states.square().mean()
        assert keys < 0.01
        assert values < 0.35
        assert pq.bytes_per_vector == 5  # 8 of a key and 2 of a value, where bf16 has 32

    def test_too_small_a_sample_is_refused(self) -> None:
        with pytest.raises(ImpRAGError, match="choose int8 or int4"):
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
        with pytest.raises(ValueError, match="are no centroids"):
            untrained_codec("pq", 32).load_state(quantizer(CENTROIDS).state())


def test_an_odd_head_does_not_fit_four_bits() -> None:
    with pytest.raises(ImpRAGError, match="even head size"):
        untrained_codec("int4", 15)


def test_an_unknown_codec_is_named() -> None:
    message = "unknown codec 'zip'; known are bf16, fp32, .* entry-point group imprag.codecs"
    with pytest.raises(ImpRAGError, match=message):
        untrained_codec("zip", 16)


@pytest.mark.parametrize("name", ["texts", "starts"])
def test_parts_named_like_something_else_in_the_files_are_refused(name: str) -> None:
    with pytest.raises(ImpRAGError, match=f"names a part '{name}', which KV caches use"):
        check_parts({name: torch.zeros(2, 1, 1, 1, 1)})
