"""The pass that retrieves, reads and writes, and generation with Hugging Face ``generate``."""

import math
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers import CompileConfig, StaticCache

from imprag.errors import ImpRAGError
from imprag.model.attention import eager_attention
from imprag.model.attribution import ReadingShares
from imprag.model.decoder import Decoder
from imprag.model.hooks import LayerInput, LayerWrapper, RecordingLayer, cache_argument
from imprag.model.inputs import last_tokens, positions
from imprag.model.kv import PassageKV, RowKV
from imprag.model.query import (
    Queries,
    attention_layer,
    new_token_attention,
    query_embeddings,
    token_attention,
)

Retrieve = Callable[[Queries], PassageKV | RowKV]
"""Maps the implicit queries of prompts to the KV of the passages of each prompt."""


class RetrieveAgain(Protocol):
    """What rows of a batch retrieve at later tokens of their answers."""

    def due(self, answers: Tensor) -> Sequence[int]:
        """The rows whose last token retrieves.

        Args:
            answers: the new tokens so far, (rows, tokens).
        """

    def __call__(
        self, rows: Sequence[int], queries: Queries, read: Sequence[PassageKV]
    ) -> Sequence[PassageKV]:
        """What each of these rows reads from now on, a batch of one each.

        Args:
            rows: that are due.
            queries: of these rows.
            read: what each of these rows read until now, a batch of one each.
        """


Reread = Callable[[Sequence[int], Queries, Sequence[PassageKV]], Sequence[PassageKV]]
"""Gives what rows read from now on, as `RetrieveAgain` does."""


class LaterQueries(NamedTuple):
    """What a pass of one token of each row needs, for rows that retrieve in it.

    Attributes:
        rows: that retrieve.
        retrieve: called at layer b.
        keys: gives the keys of `attention_layer`, (all rows, key heads, length, d_h).
        attention_mask: (all rows, length), the new tokens' column included.
    """

    rows: Sequence[int]
    retrieve: Reread
    keys: Callable[[], Tensor]
    attention_mask: Tensor


def fixed(kv: PassageKV) -> Retrieve:
    """A `Retrieve` for given passages: it returns ``kv`` for any query."""
    return lambda queries: kv


_CACHE_STEP = 64  # tokens


class ReadingOutput(NamedTuple):
    """Result of one pass of prompts through all layers.

    Attributes:
        logits: (batch, length, vocabulary).
        query_embeddings: (batch, h_k * d_h) float32.
        later_embeddings: those of later tokens, (n, h_k * d_h) float32; None if none was asked for.
    """

    logits: Tensor
    query_embeddings: Tensor
    later_embeddings: Tensor | None = None


class PromptTokens(NamedTuple):
    """A batch of prompts as token ids.

    Attributes:
        input_ids: (prompts, length) int64.
        attention_mask: (prompts, length), 1 where a token stands.
        position_shift: added to the positions, (prompts,) or a number; the paper's k * l_max.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_shift: Tensor | int

    def model_inputs(self, decoder: Decoder) -> dict[str, Tensor]:
        """The keyword arguments of the language model.

        Raises:
            ImpRAGError: a token of a prompt has no embedding.
        """
        return {
            "input_ids": decoder.embedded(self.input_ids, self.attention_mask),
            "attention_mask": self.attention_mask,
            "position_ids": positions(self.attention_mask, self.position_shift),
        }


class ReadingPass:
    """Per-call state: computes the query embedding at layer b and holds the passage KV.

    Args:
        decoder: the model.

    Attributes:
        query_embeddings: (prompts, h_k * d_h) float32; None before layer b has run.
        shares: sums up what is read, if given.
        later_embeddings: those of later tokens of the same pass.
    """

    def __init__(self, decoder: Decoder, shares: ReadingShares | None = None) -> None:
        self.decoder = decoder
        self.shares = shares

    def begin(
        self,
        retrieve: Retrieve,
        attention_mask: Tensor,
        query_tokens: Tensor | None = None,
        later_tokens: Tensor | None = None,
    ) -> None:
        """Reset the state for a new call.

        Args:
            retrieve: called once, at layer b.
            attention_mask: (prompts, length), 1 where a token of a prompt stands.
            query_tokens: (prompts,) index of each prompt's last token; the last column if None.
            later_tokens: (n, 2) row and index of other tokens whose query embeddings are wanted.
        """
        self.later_tokens = later_tokens
        self.later_embeddings: Tensor | None = None
        self.retrieve = retrieve
        self.attention_mask = attention_mask
        self.query_tokens = query_tokens
        self.query_embeddings: Tensor | None = None
        self.kv: PassageKV | RowKV | None = None
        self.later: LaterQueries | None = None

    def wrappers(self) -> dict[int, LayerWrapper]:
        """The wrappers that replace layers b..t."""
        b, t = self.decoder.config.b, self.decoder.config.t
        wrappers = {
            # Eager attention computes more than a softmax of products, so it is kept.
            i: LayerWrapper(self.decoder.layer(i), attend=partial(self._read, i))
            if self.decoder.uses_sdpa
            else LayerWrapper(
                self.decoder.layer(i),
                state_hook=partial(self._prepend, i),
                attend=partial(self._read_eagerly, i),
            )
            for i in range(b, t + 1)
        }
        wrappers[b].before = self._retrieve
        at = attention_layer(self.decoder)
        self.recording = RecordingLayer(wrappers.get(at, self.decoder.layer(at)))
        return {**wrappers, at: self.recording}

    def _retrieve(self, given: LayerInput) -> None:
        if self.kv is not None:  # a decoding step
            if self.later is not None:
                self._retrieve_again(given, self.later)
            return
        rows, length, _ = given.hidden_states.shape
        index = self.query_tokens
        if index is None:
            index = torch.full((rows,), length - 1, device=given.hidden_states.device)
        # generate() repeats every prompt for its beams or samples: retrieve once for each prompt.
        times = rows // len(self.attention_mask)
        words, mask = self.recording.input, self.attention_mask.repeat_interleave(times, 0)
        queries = Queries(
            query_embeddings(self.decoder, given.at(index))[::times],
            lambda: token_attention(self.decoder, words, index, mask)[::times],
        )
        self.query_embeddings = queries.embeddings
        if self.later_tokens is not None:
            row, place = self.later_tokens.unbind(dim=1)
            token = given.rows(row.tolist()).at(place)
            self.later_embeddings = query_embeddings(self.decoder, token)
        self.kv = self.retrieve(queries).repeat(times)

    def _retrieve_again(self, given: LayerInput, later: LaterQueries) -> None:
        """Let the rows that are due read something else from this token on."""
        rows, words = list(later.rows), self.recording.input
        only = torch.zeros(len(rows), dtype=torch.long, device=self.decoder.device)
        queries = Queries(
            query_embeddings(self.decoder, given.rows(rows).at(only)),
            lambda: new_token_attention(
                self.decoder,
                words.rows(rows).at(only),
                later.keys()[rows],
                later.attention_mask[rows],
            ),
        )
        assert self.kv is not None
        reads = list(self.kv.rows if isinstance(self.kv, RowKV) else self.kv.split())
        former = [reads[row] for row in rows]
        for row, kv in zip(rows, later.retrieve(rows, queries, former), strict=True):
            reads[row] = kv
        self.kv = RowKV(reads)

    def _prepend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert self.kv is not None
        return self.kv.prepend(layer, query, key, value, mask)

    def _read(
        self, layer: int, module: nn.Module, *states: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        assert self.kv is not None
        note = None if self.shares is None else partial(self.shares.note, layer, self.kv)
        return self.kv.attend(layer, module, *states, note=note, **kwargs)

    def _read_eagerly(
        self, layer: int, module: nn.Module, *states: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        output, weights = eager_attention(module, *states, **kwargs)
        if self.shares is not None:
            assert self.kv is not None
            assert weights is not None
            newest = weights[:, :, -1, : self.kv.width].float()
            self.shares.note(layer, self.kv, newest.sum(1))
        return output, weights


def read(
    decoder: Decoder,
    retrieve: Retrieve,
    prompts: PromptTokens,
    query_tokens: Tensor | None,
    later_tokens: Tensor | None,
    lm_arguments: dict[str, Any],
) -> ReadingOutput:
    """One pass of prompts through all layers.

    Args:
        decoder: the model.
        retrieve: called once, at layer b.
        prompts: padded on either side.
        query_tokens: (prompts,) index of each prompt's last token; that of its row if None.
        later_tokens: (n, 2) row and index of other tokens whose query embeddings are wanted.
        lm_arguments: for the language model's own ``forward``.
    """
    if query_tokens is None:
        query_tokens = last_tokens(prompts.attention_mask)
    reading = ReadingPass(decoder)
    reading.begin(retrieve, prompts.attention_mask, query_tokens, later_tokens)
    view = decoder.lm_view(reading.wrappers())
    logits: Tensor = view(**prompts.model_inputs(decoder), use_cache=False, **lm_arguments).logits
    assert reading.query_embeddings is not None
    return ReadingOutput(logits, reading.query_embeddings, reading.later_embeddings)


def generate(
    decoder: Decoder,
    retrieve: Retrieve,
    prompts: PromptTokens,
    arguments: dict[str, Any],
    shares: ReadingShares | None = None,
) -> Any:
    """Hugging Face ``generate`` over a view whose layers b..t read what ``retrieve`` returns.

    Args:
        decoder: the model.
        retrieve: called once, at layer b of the prompts' pass.
        prompts: padded on the left.
        arguments: for ``generate``.
        shares: sums up what each token's pass reads.
    """
    if shares is not None:
        arguments = {**arguments, "disable_compile": True}
    reading = ReadingPass(decoder, shares)
    reading.begin(retrieve, prompts.attention_mask)
    view = decoder.lm_view(reading.wrappers())
    # Each process generates alone, also in a training under FSDP, where transformers would wait.
    return view.generate(**prompts.model_inputs(decoder), synced_gpus=False, **arguments)


class CompiledDecoding:
    """Generates with one permanent view, so that its compiled code is reused.

    Args:
        decoder: the model.

    Raises:
        ImpRAGError: the model's rotary frequencies depend on the length of a text.
    """

    def __init__(self, decoder: Decoder) -> None:
        if decoder.rotary:
            raise ImpRAGError(
                f"{decoder.config.base_model} has rotary frequencies that depend on the length of "
                "a text, which no compiled pass can check: leave out compile_decoding"
            )
        self.reading = ReadingPass(decoder)
        self.view = decoder.lm_view(self.reading.wrappers())
        self.compiling = compile_config(fullgraph=True)
        self.cache_name = cache_argument(decoder.lm)
        self.lock = threading.Lock()

    def generate(self, retrieve: Retrieve, prompts: PromptTokens, arguments: dict[str, Any]) -> Any:
        """As the function :func:`generate`."""
        from torch._dynamo import config as dynamo

        length = prompts.input_ids.shape[1]
        longest = arguments.get("max_length") or length + arguments.get("max_new_tokens", 20)
        # Few distinct lengths, so that little is compiled.
        room = math.ceil(longest / _CACHE_STEP) * _CACHE_STEP
        cache = StaticCache(config=self.view.config, max_cache_len=room)
        with self.lock, dynamo.patch(recompile_limit=64):
            self.reading.begin(retrieve, prompts.attention_mask)
            inputs = prompts.model_inputs(self.reading.decoder)
            own = {self.cache_name: cache, "compile_config": self.compiling}
            return self.view.generate(**{**inputs, **own, **arguments})


def compile_config(**settings: Any) -> CompileConfig:
    """transformers' settings for compiled decoding, on a CPU as well."""
    config = CompileConfig(mode="default", **settings)
    config._compile_all_devices = True
    return config
