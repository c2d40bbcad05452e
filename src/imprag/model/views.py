"""Views of a model: shallow copies that share every parameter, with stand-ins for some layers.

A view costs microseconds, needs no clean-up, and lets several threads use one model. A shorter list
of layers runs fewer layers; a `StandIn` changes its layer's attention (see ``attention.py``), or
takes what it needs on the way.
"""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from imprag.errors import ImpRAGError
from imprag.model.attention import Attention, StateHook
from imprag.model.support import check_forward

Before = Callable[[nn.Module, Tensor, dict[str, Any]], None]
"""Called with a layer, the hidden states that come into it, and its keyword arguments."""


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


class Enough(Exception):
    """Raised by a state hook that has all it needs: its layer runs no further."""


class StandIn(nn.Module):
    """Takes a decoder layer's place in a view: runs it with another attention.

    A layer that never calls that attention, because a library has patched it, would run as if
    there were no passages; the call raises an ImpRAGError instead.

    Args:
        layer: the decoder layer.
        **attention: a ``state_hook``, or ``attend`` in place of its own attention.
    """

    def __init__(self, layer: nn.Module, **attention: StateHook | Attention) -> None:
        super().__init__()
        self.layer = layer
        self.attention = attention
        self.before: Before | None = None

    def forward(self, hidden_states: Tensor, **call: Any) -> Any:
        if self.before is not None:
            self.before(self.layer, hidden_states, call)
        called: list[bool] = []
        try:
            output = self.layer(hidden_states, **_noted(self.attention, called), **call)
        except Enough:
            return hidden_states
        # A compiled pass makes later tokens; that of the prompt, which is not, has looked.
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


def _noted(attention: dict[str, Any], called: list[bool]) -> dict[str, Any]:
    """The same functions, which note in ``called`` that they were called."""
    if torch.compiler.is_compiling():
        return attention

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            called.append(True)
            return function(*args, **kwargs)

        return call

    return {name: noted(function) for name, function in attention.items()}


class Terminus(StandIn):
    """The last stop of a view: takes what it needs from the layer and runs no further."""

    def __init__(self, layer: nn.Module, before: Before) -> None:
        super().__init__(layer)
        self.before = before

    def forward(self, hidden_states: Tensor, **call: Any) -> Any:
        assert self.before is not None
        self.before(self.layer, hidden_states, call)
        return hidden_states[:, -1:]


class LastToken(StandIn):
    """Runs its layer for the last token of each row only, which sees the keys and values of all.

    Nobody asks for the other tokens' output of layer b-1 where only embeddings are wanted.

    Args:
        layer: the decoder layer.
        index: (batch,) the token of each row.
        attention_mask: (batch, length), 1 where a token stands.
    """

    def __init__(self, layer: nn.Module, index: Tensor, attention_mask: Tensor) -> None:
        super().__init__(layer)
        self.index = index
        self.attention_mask = attention_mask

    def forward(self, hidden_states: Tensor, **call: Any) -> Any:
        states: list[tuple[Tensor, Tensor]] = []

        def take(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Any:
            states.append((key, value))
            raise Enough

        def see(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Any:
            return *states[0], seen

        StandIn(self.layer, state_hook=take)(hidden_states, **call)
        rows = torch.arange(len(self.index), device=self.index.device)
        mask = call.get("attention_mask")
        if mask is None:
            seen = self.attention_mask.bool()[:, None, None]
        else:
            seen = mask.expand(len(rows), -1, -1, -1)[rows, :, self.index, None]
        token = tokens_at(hidden_states, self.index)
        return self.layer(token, state_hook=see, **call_alone(call, self.index))


class Compiled(StandIn):
    """A layer in its compiled form, with frozen weights and another attention where given."""

    def __init__(self, layer: nn.Module, **attention: Attention) -> None:
        super().__init__(layer, **attention)
        self._compiled: Any = torch.compile(layer, dynamic=True)

    def forward(self, hidden_states: Tensor, **call: Any) -> Any:
        from torch._dynamo import config as dynamo
        from torch._inductor import config as inductor

        # Frozen weights are laid out for the matrix products once, not at every call. The limit is
        # for all layers together, since they share their code.
        with inductor.patch(freezing=True), dynamo.patch(recompile_limit=256):
            return self._compiled(hidden_states, **self.attention, **call)


def cache_argument(lm: PreTrainedModel) -> str:
    """What ``lm`` calls its key and value cache: ``cache``, ``past_key_values`` before 5.24."""
    known = inspect.signature(lm.forward).parameters
    return "cache" if "cache" in known else "past_key_values"


def attention_of(layer: nn.Module) -> nn.Module:
    """The attention of a decoder layer: ``self_attn``, or ``attention`` (GPT-NeoX)."""
    return layer.get_submodule("self_attn" if hasattr(layer, "self_attn") else "attention")


def tokens_at(states: Tensor, index: Tensor) -> Tensor:
    """(batch, 1, size): of each row the one with this index."""
    return states[torch.arange(len(index), device=index.device), index, None]


def counted_from_first(call: dict[str, Any]) -> dict[str, Any]:
    """The rotary embeddings of a layer's call, as if each row's first token stood at position 0.

    Prompts stand behind their passages, but ask the same wherever they stand. Turning back by the
    angles of the first token is what positions without that shift give.
    """
    cos, sin = (x.float() for x in call["position_embeddings"])
    first_cos, first_sin = cos[:, :1], sin[:, :1]
    scale = (first_cos**2 + first_sin**2).sqrt()  # of cosines and sines: YaRN's is not 1
    back = (cos * first_cos + sin * first_sin) / scale, (sin * first_cos - cos * first_sin) / scale
    dtype = call["position_embeddings"][0].dtype
    return {"position_embeddings": tuple(x.to(dtype) for x in back)}


def call_alone(call: dict[str, Any], index: Tensor) -> dict[str, Any]:
    """A layer's keyword arguments for one token of each row, without a cache or a mask."""
    cos, sin = (x.expand(len(index), -1, -1) for x in call["position_embeddings"])
    places = {"position_embeddings": (tokens_at(cos, index), tokens_at(sin, index))}
    nothing = {"attention_mask": None, "use_cache": False}
    # The cache is known by its type: its argument is called past_key_values or cache.
    nothing |= {name: None for name, value in call.items() if isinstance(value, Cache)}
    return {**call, **places, **nothing, "position_ids": torch.zeros_like(index)[:, None]}
