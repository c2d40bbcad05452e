"""Views of a model, and the wrappers that take the place of some of its decoder layers.

A view is a shallow copy of the model that shares every parameter. It costs microseconds, needs no
clean-up, and lets several threads use one model. A shorter list of layers runs fewer layers; a
`LayerWrapper` changes its layer's attention (see ``attention.py``) or records what enters it.
"""

import copy
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from imprag.errors import ImpRAGError
from imprag.model.attention import Attention, StateHook
from imprag.model.support import check_forward


def view_of(module: nn.Module, **children: nn.Module) -> Any:
    """A shallow copy of ``module`` that shares all but the named children.

    Raises:
        ImpRAGError: the module's ``forward`` was replaced.
    """
    check_forward(module)
    view = copy.copy(module)
    view.__dict__["_modules"] = {**module._modules, **children}
    view.__dict__.pop("_compiled_call", None)  # transformers': it would run ``module``
    return view


class LayerInput(NamedTuple):
    """What the model passes to a decoder layer.

    Attributes:
        hidden_states: (batch, length, hidden).
        arguments: the keyword arguments: mask, position embeddings, cache and others.
    """

    hidden_states: Tensor
    arguments: dict[str, Any]

    def at(self, index: Tensor) -> "LayerInput":
        """One token of each row at its own position, without a cache or a mask.

        Args:
            index: (batch,) the token's place in its row. Hidden states of length 1 are taken to
                be that token's already.
        """
        states = self.hidden_states
        token = states if states.shape[1] == 1 else tokens_at(states, index)
        cos, sin = (x.expand(len(index), -1, -1) for x in self.arguments["position_embeddings"])
        own = {
            "position_embeddings": (tokens_at(cos, index), tokens_at(sin, index)),
            "position_ids": torch.zeros_like(index)[:, None],
            "attention_mask": None,
        }
        return LayerInput(token, {**self.without_cache().arguments, **own})

    def rows(self, numbers: Sequence[int]) -> "LayerInput":
        """Some rows, for :meth:`at`; a row may come several times."""
        states, numbers = self.hidden_states, list(numbers)
        cos, sin = (x.expand(len(states), -1, -1) for x in self.arguments["position_embeddings"])
        own = {"position_embeddings": (cos[numbers], sin[numbers])}
        return LayerInput(states[numbers], {**self.arguments, **own})

    def without_cache(self) -> "LayerInput":
        """The same without a key and value cache, so that running a layer again adds nothing."""
        # The cache is known by its type: its argument is called past_key_values or cache.
        caches = {name: None for name, value in self.arguments.items() if isinstance(value, Cache)}
        return self._replace(arguments={**self.arguments, "use_cache": False, **caches})

    def without_rotation(self) -> "LayerInput":
        """The same at position 0, where the rotary embedding turns nothing."""
        cos, sin = self.arguments["position_embeddings"]
        identity = torch.ones_like(cos), torch.zeros_like(sin)
        return self._replace(arguments={**self.arguments, "position_embeddings": identity})


class AttentionStates(NamedTuple):
    """States of a layer's attention, after norms, projections and rotary embedding.

    Attributes:
        query: (batch, heads, length, d_h).
        key, value: (batch, key heads, length, d_h).
    """

    query: Tensor
    key: Tensor
    value: Tensor


class StopForward(Exception):
    """Raised by a state hook that has what it needs: its layer stops there."""


class LayerWrapper(nn.Module):
    """Takes a decoder layer's place in a view and runs it with another attention.

    A layer that never calls that attention, because a library has patched it, would ignore the
    passages; the call raises an ImpRAGError instead.

    Args:
        layer: the decoder layer.
        **attention: a ``state_hook``, or ``attend`` in place of the layer's own attention.

    Attributes:
        before: called with the layer's input before the layer runs.
    """

    def __init__(self, layer: nn.Module, **attention: StateHook | Attention) -> None:
        super().__init__()
        self.layer = layer
        self.attention = attention
        self.before: Callable[[LayerInput], None] | None = None

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Any:
        if self.before is not None:
            self.before(LayerInput(hidden_states, arguments))
        called: list[bool] = []
        attention = self.attention
        if not torch.compiler.is_compiling():
            attention = {name: partial(_noted, called, of) for name, of in attention.items()}
        try:
            output = self.layer(hidden_states, **attention, **arguments)
        except StopForward:
            return hidden_states
        # A compiled pass makes later tokens; that of the prompt, which is not compiled, has looked.
        if self.attention and not called and not torch.compiler.is_compiling():
            raise ImpRAGError(
                f"a {type(self.layer).__name__} of this model does not call transformers' "
                "attention, perhaps because a library has patched it, so passages cannot be read "
                "through it: load the model without that library"
            )
        return output

    def __getattr__(self, name: str) -> Any:
        # Some models ask their layers for settings, such as the kind of their attention.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)


def _noted(called: list[bool], function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The function's result; the call is recorded in ``called``."""
    called.append(True)
    return function(*args, **kwargs)


class RecordingLayer(LayerWrapper):
    """Keeps what enters its layer as ``input``, then runs it."""

    input: LayerInput

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Any:
        self.input = LayerInput(hidden_states, arguments)
        return super().forward(hidden_states, **arguments)


class ExitLayer(RecordingLayer):
    """The last layer of a view: keeps what enters its layer as ``input`` and does not run it."""

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Any:
        self.input = LayerInput(hidden_states, arguments)
        return hidden_states[:, -1:]


class LastTokenLayer(LayerWrapper):
    """Runs its layer for the last token of each row only, which sees the keys and values of all.

    Embeddings need no other token's output of layer b-1.

    Args:
        layer: the decoder layer.
        index: (batch,) the token of each row.
        attention_mask: (batch, length), 1 where a token stands.
    """

    def __init__(self, layer: nn.Module, index: Tensor, attention_mask: Tensor) -> None:
        super().__init__(layer)
        self.index = index
        self.attention_mask = attention_mask

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Any:
        given = LayerInput(hidden_states, arguments)
        row = capture(self.layer, given, stop=True)
        mask = arguments.get("attention_mask")
        if mask is None:
            seen = self.attention_mask.bool()[:, None, None]
        else:
            rows = torch.arange(len(self.index), device=self.index.device)
            seen = mask.expand(len(rows), -1, -1, -1)[rows, :, self.index, None]
        token = given.at(self.index)
        return self.layer(
            token.hidden_states,
            state_hook=lambda *own_states: (row.key, row.value, seen),
            **token.arguments,
        )


class CompiledLayer(LayerWrapper):
    """A layer in its compiled form, with frozen weights and another attention where given."""

    def __init__(self, layer: nn.Module, **attention: Attention) -> None:
        super().__init__(layer, **attention)
        self._compiled: Any = torch.compile(layer, dynamic=True)

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Any:
        from torch._dynamo import config as dynamo
        from torch._inductor import config as inductor

        # Frozen weights are laid out for the matrix products once, not at every call. The limit is
        # for all layers together, since they share their code.
        with inductor.patch(freezing=True), dynamo.patch(recompile_limit=256):
            return self._compiled(hidden_states, **self.attention, **arguments)


def capture(layer: nn.Module, given: LayerInput, *, stop: bool) -> AttentionStates:
    """Query, key and value states that a decoder layer computes from its input.

    The layer itself runs, so that its norms, projections and rotary embedding are used as they are
    in every model family.

    Args:
        layer: the decoder layer.
        given: its input.
        stop: run the layer no further than that.
    """
    captured: list[AttentionStates] = []

    def hook(
        query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        captured.append(AttentionStates(query, key, value))
        if stop:
            raise StopForward
        return key, value, mask

    LayerWrapper(layer, state_hook=hook)(given.hidden_states, **given.arguments)
    return captured[0]


def runs_again(layer: nn.Module) -> bool:
    """Whether gradient checkpointing will run a layer again, which must not end half-way."""
    checkpointing: bool = getattr(layer, "gradient_checkpointing", False)
    return checkpointing and torch.is_grad_enabled()


def cache_argument(lm: PreTrainedModel) -> str:
    """What ``lm`` calls its key and value cache: ``cache``, ``past_key_values`` before 5.24."""
    known = inspect.signature(lm.forward).parameters
    return "cache" if "cache" in known else "past_key_values"


def attention_of(layer: nn.Module) -> nn.Module:
    """The attention of a decoder layer: ``self_attn``, or ``attention`` (GPT-NeoX)."""
    return layer.get_submodule("self_attn" if hasattr(layer, "self_attn") else "attention")


def tokens_at(states: Tensor, index: Tensor) -> Tensor:
    """(batch, 1, size): of each row the token at ``index``."""
    return states[torch.arange(len(index), device=index.device), index, None]
