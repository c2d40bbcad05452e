"""What every KV codec has to do."""

import itertools
from typing import Any, ClassVar

import safetensors.torch
import torch
from torch import Tensor
from torch.testing import assert_close

from imprag.kv_cache.codecs.base import (
    CODECS,
    KINDS,
    Codec,
    check_parts,
    needs_fit,
    untrained_codec,
)

LAYERS, HEADS = 3, 2


def states(tokens: int, head_dim: int, seed: int = 0) -> Tensor:
    """A block of random states, whose dimensions differ in size as those of models do."""
    generator = torch.Generator().manual_seed(seed)
    block = torch.randn(2, LAYERS, HEADS, tokens, head_dim, generator=generator)
    block = block * torch.linspace(0.1, 5, head_dim)
    block[0, 0, 0, 0] = 0
    return block


class CodecSuite:
    """Tests of a codec; inherit them and say which codec is meant.

    Attributes:
        name: that the codec is registered under.
        head_dim: a head size that it takes.
        sample_tokens: of the sample that it learns from, if it learns.
        largest_error: the mean squared error that decoded random states may have, relative to the
            states' mean square.
    """

    name: ClassVar[str]
    head_dim: ClassVar[int] = 16
    sample_tokens: ClassVar[int] = 1000
    largest_error: ClassVar[float] = 0.05

    def codec(self, seed: int = 0) -> Codec:
        """The codec, ready to code."""
        codec = untrained_codec(self.name, self.head_dim)
        if needs_fit(codec):
            codec.fit(states(self.sample_tokens, self.head_dim), seed)
        return codec

    def test_it_is_found_by_its_name(self) -> None:
        assert self.name in CODECS.names()
        assert self.codec().name == self.name

    def test_what_is_decoded_is_close_to_what_was_encoded(self) -> None:
        block, codec = states(200, self.head_dim), self.codec()
        for dtype in (torch.float32, torch.bfloat16):
            decoded = codec.decode(codec.encode(block.to(dtype)), dtype)
            assert decoded.dtype == dtype
            assert decoded.shape == block.shape
            error = (decoded.float() - block).square().mean() / block.square().mean()
            assert error <= self.largest_error, f"the relative error is {error:.3g}"

    def test_parts_have_the_form_that_stores_need(self) -> None:
        parts = self.codec().encode(states(7, self.head_dim))
        check_parts(parts)
        for name, part in parts.items():
            assert part.ndim == 5, f"'{name}' is not (kinds, layers, key heads, tokens, width)"
            kinds, *others, _ = part.shape
            assert kinds in (1, 2), f"'{name}' is of {kinds} kinds, not of keys, values or both"
            assert others == [LAYERS, HEADS, 7], f"'{name}' has another number of layers or tokens"

    def test_a_vector_takes_as_many_bytes_as_the_codec_says(self) -> None:
        codec = self.codec()
        parts = codec.encode(states(40, self.head_dim))
        vectors = 2 * LAYERS * HEADS * 40
        assert sum(part.nbytes for part in parts.values()) == codec.bytes_per_vector * vectors
        assert untrained_codec(self.name, self.head_dim).bytes_per_vector == codec.bytes_per_vector

    def test_a_layer_alone_is_what_it_is_among_all(self) -> None:
        codec = self.codec()
        parts = codec.encode(states(40, self.head_dim))
        whole = codec.decode(parts, torch.float32)
        for (place, kind), layer in itertools.product(enumerate(KINDS), range(LAYERS)):
            assert_close(codec.decode_layer(parts, kind, layer, torch.float32), whole[place, layer])

    def test_passages_can_be_coded_and_decoded_apart_or_together(self) -> None:
        codec, block = self.codec(), states(47, self.head_dim)
        together = codec.encode(block)
        apart = [codec.encode(block[:, :, :, :40]), codec.encode(block[:, :, :, 40:])]
        for name, part in together.items():
            joined = torch.cat([parts[name] for parts in apart], dim=3)
            assert joined.equal(part), f"'{name}' of a token depends on the tokens next to it"
        decoded = [codec.decode(parts, torch.float32) for parts in apart]
        assert_close(torch.cat(decoded, dim=3), codec.decode(together, torch.float32))

    def test_nothing_is_decoded_to_nothing(self) -> None:
        codec = self.codec()
        parts = codec.encode(states(3, self.head_dim))
        empty = {name: part[:, :, :, :0] for name, part in parts.items()}
        assert codec.decode(empty, torch.float32).shape == (2, LAYERS, HEADS, 0, self.head_dim)

    def test_a_file_brings_back_what_it_has_learned(self) -> None:
        codec, block = self.codec(), states(20, self.head_dim)
        state = codec.state()
        assert bool(state) == needs_fit(codec), "a codec that learns has a state, another has none"
        again = untrained_codec(self.name, self.head_dim)
        again.load_state(safetensors.torch.load(safetensors.torch.save(state)))
        parts = codec.encode(block)
        same_parts(again.encode(block), parts)
        assert again.decode(parts, torch.float32).equal(codec.decode(parts, torch.float32))

    def test_it_learns_the_same_from_the_same_sample(self) -> None:
        same_parts(self.codec().state(), self.codec().state())

    def test_no_vector_becomes_infinite(self) -> None:
        codec = self.codec()
        for size in (0.0, 1e-6, 1e4):
            block = states(5, self.head_dim) * size
            assert codec.decode(codec.encode(block), torch.float32).isfinite().all()


def same_parts(one: Any, other: Any) -> None:
    """Compare tensors by name, bit by bit."""
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].equal(other[name]), name
