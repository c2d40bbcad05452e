"""The decoder of a language model: its layers, its heads, and views that run part of them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from imprag.errors import ImpRAGError
from imprag.model.attention import open_attention
from imprag.model.config import ImpRAGConfig
from imprag.model.generate_arguments import own_generation_config
from imprag.model.hooks import view_of
from imprag.model.inputs import positions
from imprag.model.linear import share_products
from imprag.model.rotary import held_rotary


class Decoder:
    """A causal language model whose layers can be run in groups.

    Args:
        lm: the model; its attention is opened for state hooks.
        config: layer boundaries and the rest.

    Attributes:
        num_heads, num_key_heads, head_dim: h, h_k and d_h of the paper.
        rotary: replaces the rotary embedding in views where it would depend on a text's length.
        compiled: layers that embedding passes run in compiled form, by number.

    Raises:
        ImpRAGError: the model's own attention code cannot read passages by score.
    """

    def __init__(self, lm: PreTrainedModel, config: ImpRAGConfig) -> None:
        open_attention(lm)
        share_products(lm)
        self.lm = lm
        self.config = config
        if config.attention_score_bias and not self.uses_sdpa:
            raise ImpRAGError(
                f"attention_score_bias cannot be used with {config.base_model}, whose attention is "
                "its own code: set it to 0"
            )
        self.rotary: dict[str, nn.Module] = held_rotary(lm)
        self.compiled: dict[int, nn.Module] = {}
        text = lm.config.get_text_config()
        self.num_heads: int = text.num_attention_heads
        self.num_key_heads: int = getattr(text, "num_key_value_heads", None) or self.num_heads
        self.head_dim: int = getattr(text, "head_dim", None) or text.hidden_size // self.num_heads

    @property
    def embedding_dim(self) -> int:
        """Size of query and passage embeddings: h_k * d_h."""
        return self.num_key_heads * self.head_dim

    @property
    def device(self) -> torch.device:
        """Where the model's inputs have to be."""
        device: torch.device = self.lm.device
        return device

    @property
    def uses_sdpa(self) -> bool:
        """Whether the model's attention is PyTorch's scaled dot product."""
        return bool(self.lm.config._attn_implementation == "imprag_sdpa")

    def layer(self, number: int) -> nn.Module:
        """Decoder layer ``number``, counted from 0."""
        layer: nn.Module = self.lm.base_model.layers[number]
        return layer

    def view(self, wrappers: Mapping[int, nn.Module], depth: int) -> PreTrainedModel:
        """Layers 0..depth-1 without the head, some of them replaced by wrappers."""
        layers = nn.ModuleList([wrappers.get(i, self.layer(i)) for i in range(depth)])
        return view_of(self.lm.base_model, layers=layers, **self.rotary)

    def lm_view(self, wrappers: Mapping[int, nn.Module]) -> PreTrainedModel:
        """The whole language model, some of its layers replaced by wrappers."""
        decoder = self.view(wrappers, len(self.lm.base_model.layers))
        view = view_of(self.lm, **{self.lm.base_model_prefix: decoder})
        view.generation_config = own_generation_config(self.lm)
        return view

    def run(
        self,
        wrappers: Mapping[int, nn.Module],
        depth: int,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_offset: Tensor | int = 0,
    ) -> None:
        """Run tokens through layers 0..depth-1 for what the wrappers record.

        Args:
            wrappers: replace layers, by number.
            depth: number of layers.
            input_ids: (batch, length) int64, padded on either side.
            attention_mask: (batch, length), 1 where a token stands.
            position_offset: position of the first token of all, or (batch,) of each row.
        """
        # Padding on the right is hidden by causality alone; attention without a mask is faster.
        right = bool(attention_mask[:, 0].all())
        self.view(wrappers, depth)(
            input_ids=self.embedded(input_ids, attention_mask),
            attention_mask=None if right else attention_mask,
            position_ids=positions(attention_mask, position_offset),
            use_cache=False,
        )

    def embedded(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The token ids, with padding replaced if its token has no embedding.

        A tokenizer may have control tokens that its model has no embeddings for.

        Raises:
            ImpRAGError: a token of a text has no embedding.
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
