"""Codecs: what comes back, how large it is, what they refuse."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from imprag.errors import ImpRAGError
from imprag.kv_cache.codecs.base import CODECS, KINDS, untrained_codec
from imprag.kv_cache.codecs.pq import CENTROIDS, ProductQuantizer

SHAPE = (2, 3, 2)


def block(tokens: int = 40, head_dim: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    # Dimensions of different size and a vector that is nought, as real states have.
    states = torch.randn(*SHAPE, tokens, head_dim, generator=generator)
    states = states * torch.linspace(0.1, 5, head_dim)
    states[0, 0, 0, 0] = 0
    return states


def parts_bytes(parts: dict[str, torch.Tensor]) -> int:
    return sum(part.nbytes for part in parts.values())


@pytest.mark.parametrize("name", [name for name in CODECS if name != "pq"])
def test_a_vector_takes_as_many_bytes_as_the_codec_says(name: str) -> None:
    codec = untrained_codec(name, 16)
    parts = codec.encode(block())
    assert parts_bytes(parts) == codec.bytes_per_vector * 2 * 3 * 2 * 40
    assert codec.decode(parts, torch.float32).shape == block().shape


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


def test_a_layer_alone_is_what_it_is_among_all() -> None:
    states = block(CENTROIDS)
    quantizer = ProductQuantizer.train(states)
    for codec in (*(untrained_codec(name, 16) for name in CODECS if name != "pq"), quantizer):
        parts = codec.encode(states)
        whole = codec.decode(parts, torch.float32)
        for (place, kind), layer in itertools.product(enumerate(KINDS), range(3)):
            alone = codec.decode_layer(parts, kind, layer, torch.float32)
            assert_close(alone, whole[place, layer])


def test_parts_of_passages_are_decoded_side_by_side() -> None:
    one, other = block(40), block(7, seed=1)
    quantizer = ProductQuantizer.train(block(CENTROIDS))
    for codec in (*(untrained_codec(name, 16) for name in CODECS if name != "pq"), quantizer):
        parts = [codec.encode(one), codec.encode(other)]
        joined = {name: torch.cat([part[name] for part in parts], dim=3) for name in parts[0]}
        apart = torch.cat([codec.decode(part, torch.float32) for part in parts], dim=3)
        assert_close(codec.decode(joined, torch.float32), apart)


class TestProductQuantizer:
    def test_codes_are_the_nearest_centroids(self) -> None:
        sample = block(600)
        quantizer = ProductQuantizer.train(sample)
        codes = quantizer.encode(sample)
        back = quantizer.decode(codes, torch.float32)
        for place, (kind, size) in enumerate((("keys", 2), ("values", 8))):
            centroids = quantizer.centroids[kind].double()
            assert codes[kind].shape == (1, 3, 2, 600, 16 // size)
            assert centroids.shape == (3, 2, 16 // size, CENTROIDS, size)
            for layer, head, number in itertools.product(range(3), range(2), range(16 // size)):
                of_slice = slice(number * size, (number + 1) * size)
                vectors = sample[place, layer, head, :, of_slice].double()
                nearest = torch.cdist(vectors, centroids[layer, head, number]).min(dim=1)
                decoded = back[place, layer, head, :, of_slice].double()
                assert_close((decoded - vectors).norm(dim=1), nearest.values, rtol=1e-3, atol=1e-4)

    def test_it_loses_little(self) -> None:
        states = block(2000)
        quantizer = ProductQuantizer.train(states)
        lost = quantizer.decode(quantizer.encode(states), torch.float32) - states
        keys, values = lost.square().mean(dim=(1, 2, 3, 4)) / states.square().mean()
        assert keys < 0.01
        assert values < 0.35
        assert quantizer.bytes_per_vector == 5  # 8 of a key and 2 of a value, where bf16 has 32

    def test_the_same_sample_gives_the_same_quantizer(self) -> None:
        one, other = (ProductQuantizer.train(block(300)).state() for _ in range(2))
        for name in one:
            assert_close(one[name], other[name], rtol=0, atol=0)

    def test_too_small_a_sample_is_refused(self) -> None:
        with pytest.raises(ImpRAGError, match="choose int8 or int4"):
            ProductQuantizer.train(block(CENTROIDS - 1))

    def test_a_head_that_cannot_be_sliced_is_refused(self) -> None:
        with pytest.raises(ImpRAGError, match="the head size is 18"):
            ProductQuantizer.train(block(CENTROIDS, head_dim=18))


def test_an_odd_head_does_not_fit_four_bits() -> None:
    with pytest.raises(ImpRAGError, match="even head size"):
        untrained_codec("int4", 15)


def test_an_unknown_codec_is_named() -> None:
    with pytest.raises(ImpRAGError, match="'zip' is unknown; codecs are bf16"):
        untrained_codec("zip", 16)
