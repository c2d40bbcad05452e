"""One language model that retrieves (layers 0..b), reads (b..t) and writes (above t).

The model file is not touched. Each call runs a view of the model, in which wrappers take the place
of some decoder layers (``hooks.py``).
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from imprag.errors import ImpRAGError
from imprag.model import query
from imprag.model.attribution import ReadingShares
from imprag.model.config import ImpRAGConfig, PassageEncoding
from imprag.model.decoder import Decoder
from imprag.model.decoding import DECODE_CALLBACKS, decode, decoding_config
from imprag.model.encode import (
    PassageTokens,
    arrange,
    batches,
    encode,
    encode_from_base,
    join,
    no_kv,
)
from imprag.model.generate import (
    CompiledDecoding,
    PromptTokens,
    ReadingOutput,
    Retrieve,
    RetrieveAgain,
    generate,
    read,
)
from imprag.model.generate_arguments import (
    CALLBACKS,
    CHOICES,
    OUTPUTS,
    check_arguments,
    check_one_beam,
)
from imprag.model.key_rotation import KeyRotation
from imprag.model.kv import EncodedPassages, PassageKV
from imprag.model.rotary import positions_limit
from imprag.model.self_check import check_unknown
from imprag.model.support import check_instance, check_model, plain_model


class ImpRAGModel(nn.Module):
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
        ImpRAGError: the model cannot be split this way (no rotary positions, too few layers, a
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
        self.lm = lm
        self.config = config
        self.decoder = Decoder(lm, config)
        self._compiled_decoding: CompiledDecoding | None = None
        before: ImpRAGModel | None = None
        if config.frozen_passages != "none":
            if frozen is None:
                raise ImpRAGError("frozen_passages needs the model as it was before training")
            before = ImpRAGModel(frozen, dataclasses.replace(config, frozen_passages="none"))
        self.frozen: ImpRAGModel | None
        self.__dict__["frozen"] = before  # not registered as a module

    @property
    def embedding_dim(self) -> int:
        """Size of query and passage embeddings: h_k * d_h."""
        return self.decoder.embedding_dim

    @property
    def positions_limit(self) -> int:
        """Number of positions a prompt can have, those of its passages and its answer included."""
        return positions_limit(self.lm)

    @property
    def device(self) -> torch.device:
        """Where inputs have to be."""
        return self.decoder.device

    @property
    def passage_reader(self) -> "ImpRAGModel":
        """The model whose layers b..t encode passages for reading: this one, or the base model."""
        if self.frozen is not None and self.config.frozen_passages == "kv":
            return self.frozen
        return self

    @cached_property
    def key_rotation(self) -> KeyRotation:
        """The rotary embedding of the passages' keys, for codecs that code keys before it."""
        return KeyRotation(self.passage_reader.decoder)

    def with_settings(self, **settings: Any) -> "ImpRAGModel":
        """The same model with other settings of its ``ImpRAGConfig``; weights are shared."""
        frozen = None if self.frozen is None else self.frozen.lm
        config = dataclasses.replace(self.config, **settings)
        return ImpRAGModel(self.lm, config, frozen, checked=True)

    # Retrieval: layers 0..b

    def query_embeddings(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """E_q of every prompt, by running layers 0..b only (paper, section 2).

        Args:
            input_ids: (batch, length) int64, padded on either side.
            attention_mask: (batch, length), 1 where a token stands.

        Returns:
            (batch, h_k * d_h) float32, the score scale included.
        """
        token = query.input_of_layer_b(self.decoder, input_ids, attention_mask)
        return query.query_embeddings(self.decoder, token)

    def passage_embeddings(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """E_p of every passage, by running layers 0..b only (paper, section 2).

        Args:
            input_ids, attention_mask: as for :meth:`query_embeddings`; the last token of every row
                is its pooling point.

        Returns:
            (passages, h_k * d_h) float32.
        """
        token = query.input_of_layer_b(self.decoder, input_ids, attention_mask)
        return query.passage_embeddings(self.decoder, token)

    def compile_bottom(self) -> None:
        """Let layers 0..b-2 of embedding calls run through ``torch.compile``.

        Pays for large corpora: a start of a minute, then about a fifth less time (CPU). Weights
        are frozen into the compiled code: call it again after they have changed.
        """
        query.compile_bottom(self.decoder)

    # Reading: layers b..t

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_offset: Tensor | int = 0,
        *,
        with_attention: bool = False,
    ) -> EncodedPassages:
        """Run passages through layers 0..t; embeddings and reading states come from one pass.

        Args:
            input_ids, attention_mask, position_offset: as in :class:`PassageTokens`.
            with_attention: also sum up the attention that each token receives.
        """
        passages = PassageTokens(input_ids, attention_mask, position_offset)
        if self.frozen is None:
            return encode(self.decoder, passages, with_attention=with_attention)
        embeddings = self.passage_embeddings(input_ids, attention_mask)
        if self.passage_reader is self.frozen:
            with torch.no_grad():
                encoded = encode(self.frozen.decoder, passages, with_attention=with_attention)
            return dataclasses.replace(encoded, embeddings=embeddings)
        return encode_from_base(
            self.decoder, self.frozen.decoder, passages, embeddings, with_attention=with_attention
        )

    def encode_passages(
        self,
        passages: Sequence[Sequence[Sequence[int]]],
        encoding: PassageEncoding | None = None,
    ) -> PassageKV:
        """Encode the passages of every prompt for reading (paper, Table 6).

        Args:
            passages: for every prompt, its passages as token ids; none is allowed.
            encoding: replaces the configured one.
        """
        sequences = arrange(passages, encoding or self.config.passage_encoding)
        if not sequences.rows:
            return no_kv(self.decoder, len(passages))
        kv = join(self.encode_batches(sequences.rows, sequences.offsets), sequences.read_by)
        # A full encoding is one sequence, but it is read as several passages.
        return dataclasses.replace(kv, lengths=[[len(one) for one in row] for row in passages])

    def encode_batches(
        self,
        rows: Sequence[Sequence[int]],
        offsets: Sequence[int] | None = None,
        *,
        with_attention: bool = False,
    ) -> Iterator[tuple[list[int], EncodedPassages]]:
        """Encode many passages in batches of similar length.

        Args:
            rows: passages as token ids.
            offsets: the position of each one's first token, 0 if not given.
            with_attention: as for :meth:`encode`.

        Yields:
            the numbers of a batch's rows, and their states.
        """
        offsets = [0] * len(rows) if offsets is None else offsets
        for batch, passages in batches(rows, offsets, self.device):
            yield batch, self.passage_reader.encode(*passages, with_attention=with_attention)

    # One pass of the prompt through all layers

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        retrieve: Retrieve,
        *,
        query_tokens: Tensor | None = None,
        later_tokens: Tensor | None = None,
        position_shift: Tensor | int,
        **lm_arguments: Any,
    ) -> ReadingOutput:
        """Run prompts (with their responses, in training) through the whole model once.

        Args:
            input_ids: (batch, length) int64, padded on either side.
            attention_mask: (batch, length), 1 where a token stands.
            retrieve: called once, at layer b, with the query embeddings; returns the KV that each
                prompt reads at layers b..t.
            position_shift: added to the prompts' positions, (batch,) or a number; the paper's
                k * l_max.
            query_tokens: (batch,) index of each prompt's last token, where the query embedding
                is taken; the last token of each row if not given.
            later_tokens: (n, 2) row and index of other tokens whose query embeddings are wanted, of
                responses that retrieve again.
            **lm_arguments: for the language model's own ``forward``.
        """
        prompts = PromptTokens(input_ids, attention_mask, position_shift)
        return read(self.decoder, retrieve, prompts, query_tokens, later_tokens, lm_arguments)

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        retrieve: Retrieve,
        *,
        position_shift: Tensor | int,
        shares: ReadingShares | None = None,
        again: RetrieveAgain | None = None,
        **generate_arguments: Any,
    ) -> Any:
        """Hugging Face ``generate`` (greedy, sampling, beams, streamer ...).

        The prompts run through the model once. At layer b their query embeddings go to
        ``retrieve``, and the same hidden states continue, reading what it returns; later tokens
        read the same, unless they retrieve ``again``.

        Args:
            input_ids, attention_mask, retrieve, position_shift: as for :meth:`forward`, but padded
                on the left.
            shares: sums up what each new token's pass reads. Not for beam search, and new tokens
                are made without compiled code.
            again: says which later tokens retrieve, and what their rows read from then on; for
                greedy search and sampling.
            **generate_arguments: for ``transformers``' ``generate``; see
                :mod:`imprag.model.generate_arguments` for those that work.

        Returns:
            as ``transformers``; by default (batch, length + new tokens) int64.

        Raises:
            ImpRAGError: the padding is on the right, or an argument does not work with retrieval
                or attribution.
        """
        if not bool(attention_mask[:, -1].all()):
            raise ImpRAGError("generate needs prompts padded on the left")
        arguments = check_arguments(generate_arguments, {*CHOICES, *CALLBACKS, *OUTPUTS})
        if shares is not None:
            check_one_beam(self.lm, arguments)
        prompts = PromptTokens(input_ids, attention_mask, position_shift)
        if self._compiled_decoding is not None and shares is None and again is None:
            return self._compiled_decoding.generate(retrieve, prompts, arguments)
        if (config := decoding_config(self.lm, arguments)) is not None:
            callbacks = {name: x for name, x in arguments.items() if name in DECODE_CALLBACKS}
            return decode(
                self.decoder, retrieve, prompts, config, again=again, shares=shares, **callbacks
            )
        if again is not None:
            raise ImpRAGError(
                "retrieving again works with greedy search and sampling by temperature, top_k and "
                "top_p: set retrieve to once, or leave out the other arguments of generate (and "
                "penalties in the model's generation_config.json)"
            )
        return generate(self.decoder, retrieve, prompts, arguments, shares)

    def compile_decoding(self) -> None:
        """Let :meth:`generate` make all new tokens but the first by a compiled pass.

        Pays for servers and long answers: a new token takes a quarter less time (CPU,
        SmolLM2-135M), but the first answer waits for the compiler, up to a minute, and so does
        the first with another number of prompts. Calls from several threads wait for each other.

        Raises:
            ImpRAGError: the model's rotary frequencies depend on the length of a text.
        """
        self._compiled_decoding = CompiledDecoding(self.decoder)
