"""One language model in three layer groups: retrieve (0..b), read (b..t), write (above t).

The model file is not touched: each call runs a *view* of the model (see ``views.py``), in which
stand-ins take the place of some decoder layers.
"""

import dataclasses
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import CompileConfig, PreTrainedModel, StaticCache

from imprag.errors import ImpRAGError
from imprag.model.attention import (
    matmul_attention,
    open_attention,
    reading_attention,
    received_attention,
    sdpa_attention,
)
from imprag.model.config import ImpRAGConfig, PassageEncoding
from imprag.model.generate_arguments import (
    CALLBACKS,
    CHOICES,
    OUTPUTS,
    check_arguments,
    own_generation_config,
)
from imprag.model.inputs import batches_by_length, last_tokens, pad, positions
from imprag.model.rotary import held_rotary, positions_limit
from imprag.model.self_check import check_unknown
from imprag.model.states import PassageStates, Prefix
from imprag.model.support import check_instance, check_model, plain_model
from imprag.model.views import (
    Compiled,
    Enough,
    LastToken,
    StandIn,
    Terminus,
    attention_of,
    cache_argument,
    call_alone,
    tokens_at,
    view_of,
)

Retrieve = Callable[[Tensor], Prefix]
"""Maps query embeddings, (batch, h_k * d_h) float32, to what each prompt then reads."""

_CACHE_STEP = 64  # tokens


class ReadingOutput(NamedTuple):
    """Result of :meth:`LayerGroups.forward`.

    Attributes:
        logits: (batch, length, vocabulary).
        query_embeddings: (batch, h_k * d_h) float32.
    """

    logits: Tensor
    query_embeddings: Tensor


class LayerGroups(nn.Module):
    """A causal language model that retrieves, reads and writes (paper, section 2).

    Works on token ids and knows no tokenizer, index or corpus. Everything is differentiable and
    works with gradient checkpointing, in any dtype and on any device of the model.

    Args:
        lm: a decoder-only causal language model of transformers with rotary positions.
        config: layer boundaries and the rest.
        frozen: the model before training, for ``config.frozen_passages``. It is no part of this
            module: neither trained, saved nor moved with it.
        checked: the family is known to compute the same in layer groups; without, unknown ones are
            tried on a small model (:mod:`imprag.model.self_check`).

    Raises:
        ImpRAGError: the model cannot be cut this way (no rotary positions, too few layers, a
            sliding window shorter than the passages, an attention that cannot be extended, a
            ``forward`` that was replaced), or there is no ``frozen`` model where one is needed.
    """

    def __init__(
        self,
        lm: PreTrainedModel,
        config: ImpRAGConfig,
        frozen: PreTrainedModel | None = None,
        *,
        checked: bool = False,
    ) -> None:
        super().__init__()
        lm = plain_model(lm)
        check_model(lm, config)
        check_instance(lm, config.base_model)
        if not checked:
            check_unknown(lm, config.base_model)
        open_attention(lm)
        self.lm = lm
        self.config = config
        if config.reading_score_weight and not self._fused:
            raise ImpRAGError(
                f"reading_score_weight cannot be used with {config.base_model}, whose attention is "
                "its own code: set it to 0"
            )
        self.frozen: LayerGroups | None
        before: LayerGroups | None = None
        if config.frozen_passages != "none":
            if frozen is None:
                raise ImpRAGError("frozen_passages needs the model as it was before training")
            before = LayerGroups(frozen, dataclasses.replace(config, frozen_passages="none"))
        self.__dict__["frozen"] = before  # not registered as a module
        self._rotary: dict[str, nn.Module] = held_rotary(lm)  # part of views only
        self._compiled: dict[int, nn.Module] = {}
        self._decoding: _Decoding | None = None
        text_config = lm.config.get_text_config()
        self.num_heads: int = text_config.num_attention_heads
        self.num_key_heads: int = (
            getattr(text_config, "num_key_value_heads", None) or self.num_heads
        )
        self.head_dim: int = (
            getattr(text_config, "head_dim", None) or text_config.hidden_size // self.num_heads
        )

    @property
    def embedding_dim(self) -> int:
        """Size of query and passage embeddings: h_k * d_h."""
        return self.num_key_heads * self.head_dim

    @property
    def score_scale(self) -> float:
        """Factor on E_q · E_p; query embeddings hold it already, so inner products are scores."""
        return self.config.score_scale or self.embedding_dim**-0.5

    @property
    def positions_limit(self) -> int:
        """So many positions a prompt can have, those of its passages and its answer included."""
        return positions_limit(self.lm)

    @property
    def device(self) -> torch.device:
        """Where inputs have to be."""
        device: torch.device = self.lm.device
        return device

    @property
    def passage_reader(self) -> "LayerGroups":
        """The model whose layers b..t encode passages for reading: this one, or the base model."""
        if self.frozen is not None and self.config.frozen_passages == "kv":
            return self.frozen
        return self

    def with_settings(self, **settings: Any) -> "LayerGroups":
        """The same model with other settings of its ``ImpRAGConfig``; weights are shared."""
        frozen = None if self.frozen is None else self.frozen.lm
        config = dataclasses.replace(self.config, **settings)
        return LayerGroups(self.lm, config, frozen, checked=True)

    # Retrieval: layers 0..b

    def query_embeddings(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """E_q of every prompt, by running layers 0..b only (paper, section 2).

        Args:
            input_ids: (batch, length) int64, padded on either side.
            attention_mask: (batch, length), 1 where a token stands.

        Returns:
            (batch, h_k * d_h) float32, the score scale included.
        """
        return self._query_embeddings(*self._bottom_states(input_ids, attention_mask))

    def query_inputs(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """What comes into layer b at the last token of every prompt.

        It is all that layer b makes a query embedding of: `query_embeddings_of`.

        Args:
            input_ids, attention_mask: as for `query_embeddings`.

        Returns:
            (batch, hidden), in the model's dtype.
        """
        found: list[Tensor] = []
        self._run_bottom(
            input_ids, attention_mask, lambda layer, token, *_: found.append(token[:, 0])
        )
        return found[0]

    def query_embeddings_of(self, inputs: Tensor) -> Tensor:
        """E_q of prompts, from what comes into layer b.

        Args:
            inputs: (batch, hidden), as of `query_inputs`.

        Returns:
            (batch, h_k * d_h) float32, the score scale included.

        Raises:
            ImpRAGError: queries depend on their positions, too.
        """
        if self.config.rope != "before":
            raise ImpRAGError("queries depend on their positions in a model with rope: after")
        found: list[tuple[Tensor, Tensor]] = []

        def take(layer: nn.Module, token: Tensor, index: Tensor, call: dict[str, Any]) -> None:
            found.append(self._token_states(layer, inputs[:, None], index, call))

        # Any token does: it is asked only how the model calls its layers.
        anything = torch.ones(1, 1, dtype=torch.int64, device=self.device)
        self._run_bottom(anything, anything, take)
        return self._query_embeddings(*found[0])

    def passage_embeddings(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """E_p of every passage, by running layers 0..b only (paper, section 2).

        Args:
            input_ids: (passages, length) int64, padded on either side; the last token of every
                row is its pooling point.
            attention_mask: (passages, length), 1 where a token stands.

        Returns:
            (passages, h_k * d_h) float32.
        """
        return self._passage_embeddings(*self._bottom_states(input_ids, attention_mask))

    def compile_bottom(self) -> None:
        """Let layers 0..b-2 of embedding calls run through ``torch.compile``.

        Pays for large corpora: a start of a minute, then about a fifth less time (CPU).
        Embeddings differ from those of plain layers by rounding. Without gradients the weights
        are frozen into the compiled code: call it again after they have changed.
        """
        # Held in a dictionary, so that they are not registered as modules a second time.
        quick = self._fused and self.device.type == "cpu"
        attention = {"attend": matmul_attention} if quick else {}
        whole = range(self.config.b - 1)  # the last of them runs for one token of each row
        self._compiled = {i: Compiled(self._layer(i), **attention) for i in whole}

    # Reading: layers b..t

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_offset: Tensor | int = 0,
        *,
        with_attention: bool = False,
    ) -> PassageStates:
        """Run passages through layers 0..t; embeddings and reading states come from one pass.

        Args:
            input_ids: (sequences, length) int64, padded on the right.
            attention_mask: (sequences, length), 1 where a token stands.
            position_offset: position of the first token of all, or (sequences,) of each.
            with_attention: also sum up the attention that each token receives.
        """
        if self.frozen is not None:
            return self._encode_frozen(input_ids, attention_mask, position_offset, with_attention)
        b, t = self.config.b, self.config.t
        recorder = _Recorder(self, attention_mask, with_attention)
        found: list[Tensor] = []

        def embed(layer: nn.Module, hidden_states: Tensor, call: dict[str, Any]) -> None:
            index = last_tokens(attention_mask)
            states = self._token_states(layer, tokens_at(hidden_states, index), index, call)
            found.append(self._passage_embeddings(*states))

        stand_ins = {
            # Nobody asks for what comes after layer t's keys and values.
            i: recorder.stand_in(i, last=i == t and not torch.is_grad_enabled())
            for i in range(b, t + 1)
        }
        stand_ins[b].before = embed
        self._run(self._decoder_view(stand_ins, t + 1), input_ids, attention_mask, position_offset)
        return recorder.states(found[0])

    def _encode_frozen(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_offset: Tensor | int,
        with_attention: bool,
    ) -> PassageStates:
        """:meth:`encode` with ``frozen_passages``: only the embeddings are all the model's own."""
        assert self.frozen is not None
        passages = (input_ids, attention_mask, position_offset)
        embeddings = self.passage_embeddings(input_ids, attention_mask)
        with torch.no_grad():
            if self.passage_reader is self.frozen:
                states = self.frozen.encode(*passages, with_attention=with_attention)
                return dataclasses.replace(states, embeddings=embeddings)
            inputs = self.frozen._layer_inputs(*passages)
        recorder = _Recorder(self, attention_mask, with_attention)
        for i, (hidden_states, call) in inputs.items():
            recorder.stand_in(i, last=not self._runs_again(i))(hidden_states, **call)
        return recorder.states(embeddings)

    def _layer_inputs(
        self, input_ids: Tensor, attention_mask: Tensor, position_offset: Tensor | int
    ) -> dict[int, tuple[Tensor, dict[str, Any]]]:
        """What comes into every layer b..t, with the layer's keyword arguments."""
        inputs: dict[int, tuple[Tensor, dict[str, Any]]] = {}

        def note(
            number: int, layer: nn.Module, hidden_states: Tensor, call: dict[str, Any]
        ) -> None:
            inputs[number] = (hidden_states, call)

        b, t = self.config.b, self.config.t
        stand_ins = {i: StandIn(self._layer(i)) for i in range(b, t)}
        for i, stand_in in stand_ins.items():
            stand_in.before = partial(note, i)
        stand_ins[t] = Terminus(self._layer(t), partial(note, t))
        self._run(self._decoder_view(stand_ins, t + 1), input_ids, attention_mask, position_offset)
        return inputs

    def encode_passages(
        self,
        passages: Sequence[Sequence[Sequence[int]]],
        encoding: PassageEncoding | None = None,
    ) -> Prefix:
        """Encode the passages of every prompt for reading (paper, Table 6).

        Args:
            passages: for every prompt, its passages as token ids; none is allowed.
            encoding: in place of the configured one.

        Returns:
            what the prompts read, one row for each.
        """
        encoding = encoding or self.config.passage_encoding
        rows: list[tuple[int, ...]] = []
        assignment: list[list[int]] = []
        offsets: list[int] = []
        if encoding == "independent":
            # The same passage under several prompts is encoded once.
            known: dict[tuple[int, ...], int] = {}
            for prompt in passages:
                assignment.append([known.setdefault(tuple(p), len(known)) for p in prompt])
            rows = list(known)
            offsets = [0] * len(rows)
        elif encoding == "segmented":
            # One sequence in which passages do not see each other is the same as every passage
            # alone, placed at its running position.
            for prompt in passages:
                assignment.append(list(range(len(rows), len(rows) + len(prompt))))
                start = 0
                for passage in prompt:
                    rows.append(tuple(passage))
                    offsets.append(start)
                    start += len(passage)
        else:
            for prompt in passages:
                assignment.append([len(rows)] if prompt else [])
                if prompt:
                    rows.append(tuple(token for passage in prompt for token in passage))
                    offsets.append(0)
        if not rows:
            return self._empty_prefix(len(passages))
        order: list[int] = []
        states: list[PassageStates] = []
        for batch, encoded in self.encode_batches(rows, offsets):
            order += batch
            states.append(encoded)
        place_of = {row: place for place, row in enumerate(order)}
        places = [[place_of[row] for row in read] for read in assignment]
        return PassageStates.concatenate(states).prefix(places)

    def encode_batches(
        self,
        rows: Sequence[Sequence[int]],
        offsets: Sequence[int] | None = None,
        *,
        with_attention: bool = False,
    ) -> Iterator[tuple[list[int], PassageStates]]:
        """What prompts read of many passages, encoded in batches of like length.

        Args:
            rows: passages as token ids.
            offsets: the position of each one's first token, 0 if not given.
            with_attention: as for :meth:`encode`.

        Yields:
            the numbers of a batch's rows, and their states.
        """
        offsets = [0] * len(rows) if offsets is None else offsets
        batch_tokens = 2048 if self.device.type == "cpu" else 65536
        for batch in batches_by_length([len(row) for row in rows], batch_tokens):
            input_ids, attention_mask = pad([rows[i] for i in batch], self.device)
            position_offset = torch.tensor([offsets[i] for i in batch], device=self.device)
            yield (
                batch,
                self.passage_reader.encode(
                    input_ids, attention_mask, position_offset, with_attention=with_attention
                ),
            )

    # One pass of the prompt through all layers

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        passages: Prefix | Retrieve,
        *,
        position_shift: Tensor | int,
        query_tokens: Tensor | None = None,
        **lm_arguments: Any,
    ) -> ReadingOutput:
        """Run prompts (with their responses, in training) through the whole model once.

        Args:
            input_ids: (batch, length) int64, padded on either side.
            attention_mask: (batch, length), 1 where a token stands.
            passages: what each prompt reads at layers b..t, or a function that finds it: called
                once, at layer b, with the query embeddings.
            position_shift: by how much the prompts' positions come after 0, (batch,) or a
                number; the paper's k * l_max.
            query_tokens: (batch,) index of each prompt's last token, where the query embedding
                is taken; the last token of each row if not given.
            **lm_arguments: for the language model's own ``forward``.
        """
        if query_tokens is None:
            query_tokens = last_tokens(attention_mask)
        input_ids = self._embedded(input_ids, attention_mask)
        reading = _Reading(self)
        reading.begin(passages, len(input_ids), query_tokens)
        output = self._lm_view(reading)(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions(attention_mask, position_shift),
            use_cache=False,
            **lm_arguments,
        )
        assert reading.query_embeddings is not None
        return ReadingOutput(output.logits, reading.query_embeddings)

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        passages: Prefix | Retrieve,
        *,
        position_shift: Tensor | int,
        **generate_arguments: Any,
    ) -> Any:
        """Hugging Face ``generate`` (greedy, sampling, beams, streamer ...).

        The prompts run through the model once. At layer b their query embeddings go to
        ``passages``, if it is a function, and the same hidden states go on, reading what it
        returns; later tokens read the same.

        Args:
            input_ids: (batch, length) int64, padded on the left.
            attention_mask: (batch, length), 1 where a token stands.
            passages: as for :meth:`forward`.
            position_shift: as for :meth:`forward`.
            **generate_arguments: for ``transformers``' ``generate``; see
                :mod:`imprag.model.generate_arguments` for those that work.

        Returns:
            what ``generate`` returns; by default (batch, length + new tokens) int64.

        Raises:
            ImpRAGError: the padding is on the right, or an argument does not work with retrieval.
        """
        if not bool(attention_mask[:, -1].all()):
            raise ImpRAGError("generate needs prompts padded on the left")
        known = {*CHOICES, *CALLBACKS, *OUTPUTS}
        generate_arguments = check_arguments(generate_arguments, known)
        generate_arguments = {
            "input_ids": self._embedded(input_ids, attention_mask),
            "attention_mask": attention_mask,
            "position_ids": positions(attention_mask, position_shift),
            **generate_arguments,
        }
        if self._decoding is not None:
            return self._decoding.generate(passages, generate_arguments)
        reading = _Reading(self)
        reading.begin(passages, len(input_ids))
        return self._lm_view(reading).generate(**generate_arguments)

    def compile_decoding(self) -> None:
        """Let :meth:`generate` make all new tokens but the first by a compiled pass.

        Own keys and values then lie in buffers of a fixed length. Pays for servers and long
        answers: a new token takes a quarter less time (CPU, SmolLM2-135M), but the first answer
        waits for the compiler, up to a minute, and so does the first with another number of
        prompts. Calls from several threads wait for each other.

        Raises:
            ImpRAGError: the model's rotary frequencies depend on the length of a text.
        """
        if self._rotary:
            raise ImpRAGError(
                f"{self.config.base_model} has rotary frequencies that depend on the length of a "
                "text, which no compiled pass can watch over: leave out compile_decoding"
            )
        self._decoding = _Decoding(self)

    # Views of the model

    @property
    def _fused(self) -> bool:
        """Whether the model's attention is PyTorch's scaled dot product."""
        fused: bool = self.lm.config._attn_implementation == "imprag_sdpa"
        return fused

    @property
    def _decoder(self) -> PreTrainedModel:
        return self.lm.base_model

    def _layer(self, index: int) -> nn.Module:
        layer: nn.Module = self._decoder.layers[index]
        return layer

    def _runs_again(self, index: int) -> bool:
        """Whether gradient checkpointing will run a layer again, which must not end half-way."""
        checkpointing: bool = getattr(self._layer(index), "gradient_checkpointing", False)
        return checkpointing and torch.is_grad_enabled()

    def _decoder_view(self, stand_ins: Mapping[int, nn.Module], depth: int) -> PreTrainedModel:
        layers = nn.ModuleList([stand_ins.get(i, self._layer(i)) for i in range(depth)])
        return view_of(self._decoder, layers=layers, **self._rotary)

    def _lm_view(self, reading: "_Reading") -> PreTrainedModel:
        depth = len(self._decoder.layers)
        decoder = self._decoder_view(reading.stand_ins(), depth)
        view = view_of(self.lm, **{self.lm.base_model_prefix: decoder})
        view.generation_config = own_generation_config(self.lm)
        return view

    def _run(
        self,
        decoder: PreTrainedModel,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_offset: Tensor | int = 0,
    ) -> None:
        # Padding on the right is hidden by causality alone; attention without a mask is faster.
        right = bool(attention_mask[:, 0].all())
        decoder(
            input_ids=self._embedded(input_ids, attention_mask),
            attention_mask=None if right else attention_mask,
            position_ids=positions(attention_mask, position_offset),
            use_cache=False,
        )

    def _embedded(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids that all have an embedding; those of padding may have lacked one.

        A tokenizer may have control tokens that its model was never given embeddings for.

        Raises:
            ImpRAGError: a token of a text has none.
        """
        count = self.lm.get_input_embeddings().num_embeddings
        if int(input_ids.max()) < count:
            return input_ids
        input_ids = input_ids.masked_fill(attention_mask == 0, 0)
        if (highest := int(input_ids.max())) >= count:
            raise ImpRAGError(
                f"a text uses the control token {highest}, but {self.config.base_model} embeds the "
                f"tokens 0 to {count - 1} only; leave it out of the prompt or template, or take "
                "the tokenizer that belongs to the model"
            )
        return input_ids

    # The implicit query

    def _bottom_states(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        states: list[tuple[Tensor, Tensor]] = []
        self._run_bottom(
            input_ids, attention_mask, lambda *given: states.append(self._token_states(*given))
        )
        return states[0]

    def _run_bottom(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        take: Callable[[nn.Module, Tensor, Tensor, dict[str, Any]], None],
    ) -> None:
        """Run layers 0..b-1, and hand over layer b with the last token of each row that enters it.

        Args:
            input_ids, attention_mask: as for `query_embeddings`.
            take: called once with what `_token_states` takes.
        """
        index = last_tokens(attention_mask)

        def arrive(layer: nn.Module, hidden_states: Tensor, call: dict[str, Any]) -> None:
            if hidden_states.shape[1] > 1:
                hidden_states = tokens_at(hidden_states, index)
            take(layer, hidden_states, index, call)

        b = self.config.b
        stand_ins = {**self._compiled, b: Terminus(self._layer(b), arrive)}
        if b > 0 and not self._runs_again(b - 1):
            stand_ins[b - 1] = LastToken(self._layer(b - 1), index, attention_mask)
        self._run(self._decoder_view(stand_ins, b + 1), input_ids, attention_mask)

    def _token_states(
        self, layer: nn.Module, token: Tensor, index: Tensor, call: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Query and key states of one token of each row at layer b.

        Layer b itself is run on that token alone, so that its norms, projections and rotary
        embedding are used as they are in every model family; without gradients no further than
        that. To take the states before the rotary embedding, the token is given position 0, where
        it turns nothing.

        Args:
            layer: decoder layer b.
            token: (batch, 1, hidden), what comes into layer b at that token.
            index: (batch,) its place in each row.
            call: the keyword arguments that the model passes to the layer.

        Returns:
            query (batch, heads, d_h) and key (batch, key heads, d_h).
        """
        alone = call_alone(call, index)
        if self.config.rope == "before":
            cos, sin = alone["position_embeddings"]
            alone["position_embeddings"] = torch.ones_like(cos), torch.zeros_like(sin)
        states: list[tuple[Tensor, Tensor]] = []

        def take(
            query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
        ) -> tuple[Tensor, Tensor, Tensor | None]:
            states.append((query[:, :, 0], key[:, :, 0]))
            if not torch.is_grad_enabled():
                raise Enough
            return key, value, mask

        StandIn(layer, state_hook=take)(token, **alone)
        return states[0]

    def _query_embeddings(self, query: Tensor, key: Tensor) -> Tensor:
        # Heads are averaged within their group; scaled here once, so that every inner product
        # with a passage embedding is the score s(q, p).
        groups = query.float().view(len(query), self.num_key_heads, -1, self.head_dim)
        return groups.mean(dim=2).flatten(1) * self.score_scale

    def _passage_embeddings(self, query: Tensor, key: Tensor) -> Tensor:
        return key.float().flatten(1)

    def _empty_prefix(self, batch: int) -> Prefix:
        weight = self.lm.get_input_embeddings().weight
        states = weight.new_zeros(batch, self.num_key_heads, 0, self.head_dim)
        layers = dict.fromkeys(range(self.config.b, self.config.t + 1), states)
        return Prefix(layers, layers, [[]] * batch)


class _Reading:
    """A call's way through the layers: takes the query at layer b, finds what b..t read."""

    def __init__(self, groups: LayerGroups) -> None:
        self.groups = groups

    def begin(
        self, passages: Prefix | Retrieve, prompts: int, query_tokens: Tensor | None = None
    ) -> None:
        """A call begins."""
        self.passages = passages
        self.prompts = prompts
        self.query_tokens = query_tokens
        self.query_embeddings: Tensor | None = None
        self.prefix: Prefix | None = None

    def stand_ins(self) -> dict[int, StandIn]:
        b, t = self.groups.config.b, self.groups.config.t
        stand_ins = {
            # An eager attention computes more than a softmax of products, so it stays.
            i: StandIn(self.groups._layer(i), attend=partial(self._read, i))
            if self.groups._fused
            else StandIn(self.groups._layer(i), state_hook=partial(self._attend, i))
            for i in range(b, t + 1)
        }
        stand_ins[b].before = self._retrieve
        return stand_ins

    def _retrieve(self, layer: nn.Module, hidden_states: Tensor, call: dict[str, Any]) -> None:
        if self.prefix is not None:  # a decoding step
            return
        index = self.query_tokens
        if index is None:
            index = torch.full(
                (len(hidden_states),), hidden_states.shape[1] - 1, device=hidden_states.device
            )
        embeddings = self.groups._query_embeddings(
            *self.groups._token_states(layer, tokens_at(hidden_states, index), index, call)
        )
        # generate() repeats every prompt for its beams or samples: ask once for each prompt.
        times = len(embeddings) // self.prompts
        self.query_embeddings = embeddings[::times]
        found = self.passages
        prefix = found if isinstance(found, Prefix) else found(self.query_embeddings)
        self.prefix = prefix.repeat(times)

    def _attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        assert self.prefix is not None
        return self.prefix.attend(layer, query, key, value, mask)

    def _read(
        self,
        layer: int,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        assert self.prefix is not None
        prefix = self.prefix
        costly = torch.is_grad_enabled() or (query.device.type != "cpu" and query.shape[2] > 1)
        if costly and prefix.logits is None:
            states = prefix.attend(layer, query, key, value, mask)
            return sdpa_attention(module, query, *states, **kwargs)
        return reading_attention(
            module,
            query,
            key,
            value,
            mask,
            passage_key=prefix.keys[layer],
            passage_value=prefix.values[layer],
            passage_bias=prefix.bias,
            **kwargs,
        )


class _Decoding:
    """Generates with a view that lasts, so that what was compiled for it is used again."""

    def __init__(self, groups: LayerGroups) -> None:
        self.reading = _Reading(groups)
        self.view = groups._lm_view(self.reading)
        self.compiling = compile_config(fullgraph=True)
        self.cache_name = cache_argument(groups.lm)
        self.lock = threading.Lock()

    def generate(self, passages: Prefix | Retrieve, arguments: dict[str, Any]) -> Any:
        """As :meth:`LayerGroups.generate`."""
        from torch._dynamo import config as dynamo

        prompts, length = arguments["input_ids"].shape
        longest = arguments.get("max_length") or length + arguments.get("max_new_tokens", 20)
        # Few lengths, so that little is compiled.
        room = math.ceil(longest / _CACHE_STEP) * _CACHE_STEP
        cache = StaticCache(config=self.view.config, max_cache_len=room)
        with self.lock, dynamo.patch(recompile_limit=64):
            self.reading.begin(passages, prompts)
            return self.view.generate(
                **{self.cache_name: cache, "compile_config": self.compiling, **arguments}
            )


class _Recorder:
    """Collects keys and values, and received attention, of passages at layers b..t."""

    def __init__(self, groups: LayerGroups, attention_mask: Tensor, with_attention: bool) -> None:
        self.groups = groups
        self.attention_mask = attention_mask
        self.with_attention = with_attention
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.attention: dict[int, Tensor] = {}

    def stand_in(self, layer: int, *, last: bool) -> StandIn:
        """Takes a layer's place; the last one runs no further than its keys and values."""
        hook = partial(self._record, layer, last)
        return StandIn(self.groups._layer(layer), state_hook=hook)

    def _record(
        self,
        layer: int,
        last: bool,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        self.keys[layer], self.values[layer] = key, value
        if self.with_attention:
            module = attention_of(self.groups._layer(layer))
            scaling = getattr(module, "scaling", self.groups.head_dim**-0.5)
            received = received_attention(query, key, self.attention_mask, scaling)
            self.attention[layer] = received
        if last:
            raise Enough
        return key, value, mask

    def states(self, embeddings: Tensor) -> PassageStates:
        """All that was recorded."""
        mask = self.attention_mask.bool()
        return PassageStates(self.keys, self.values, mask, embeddings, self.attention)


def compile_config(**settings: Any) -> CompileConfig:
    """transformers' settings for a compiled pass while decoding, on a CPU, too."""
    config = CompileConfig(mode="default", **settings)
    config._compile_all_devices = True
    return config
