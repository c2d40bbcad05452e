"""Codecs: what comes back, how large it is, what they refuse."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from imprag.errors import ImpRAGError
from imprag.memory.codecs import CODECS, untrained_codec
from imprag.memory.product_quantization import CENTROIDS, ProductQuantizer

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


def test_parts_of_passages_are_decoded_side_by_side() -> None:
    one, other = block(40), block(7, seed=1)
    quantizer = ProductQuantizer.train(block(CENTROIDS))
    for codec in (*(untrained_codec(name, 16) for name in CODECS if name != "pq"), quantizer):
        parts = [codec.encode(one), codec.encode(other)]
        joined = {name: torch.cat([part[name] for part in parts], dim=3) for name in parts[0]}
        apart = torch.cat([codec.decode(part, torch.float32) for part in parts], dim=3)
        assert_close(codec.decode(joined, torch.float32), apart)


class TestProductQuantizer:
    def test_it_is_what_faiss_computes(self) -> None:
        import faiss

        sample = block(600)
        quantizer = ProductQuantizer.train(sample)
        codes = quantizer.encode(sample)["codes"]
        back = quantizer.decode({"codes": codes}, torch.float32)
        for which in ((0, 0, 0), (1, 2, 1)):
            vectors = sample[which].numpy()
            reference = faiss.ProductQuantizer(16, 4, 8)
            faiss.copy_array_to_vector(
                quantizer.centroids[which].numpy().ravel(), reference.centroids
            )
            expected = reference.compute_codes(vectors)
            assert (codes[which].numpy() == expected).mean() > 0.999  # ties are broken freely
            decoded = torch.from_numpy(reference.decode(codes[which].numpy()))
            assert_close(back[which], decoded)

    def test_it_loses_little(self) -> None:
        states = block(2000)
        quantizer = ProductQuantizer.train(states)
        back = quantizer.decode(quantizer.encode(states), torch.float32)
        assert (back - states).square().mean() < 0.1 * states.square().mean()
        assert quantizer.bytes_per_vector == 4  # an eighth of bfloat16

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
