"""Checks on a small model that a family computes the same in layer groups as in one piece.

The tests cover some families and versions. Every other one is checked when a model of it is loaded:
a small random model of the same class (see ``small.py``) reads, decodes and embeds in layer groups
and in one piece, and both results must be equal. So a family with layers of another kind, or a
release of transformers that renamed an argument, is refused instead of giving wrong answers.
"""

import functools
import json
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from imprag.errors import ImpRAGError
from imprag.model.attention import needs_eager, open_attention
from imprag.model.config import ImpRAGConfig
from imprag.model.generate import fixed
from imprag.model.inputs import pad
from imprag.model.small import VOCABULARY, small_model
from imprag.model.versions import TESTED_FAMILIES, untested_versions

if TYPE_CHECKING:
    from imprag.model.model import ImpRAGModel

_TOLERANCE = 1e-3  # relative to the largest number; float32 rounding is far below
_CPU = torch.device("cpu")


def check_unknown(lm: PreTrainedModel, name: str) -> None:
    """Check layer groups on a small model like ``lm``, unless the tests cover its family.

    Args:
        lm: the model; only its class and configuration count.
        name: its name in errors.

    Raises:
        ImpRAGError: layer groups fail or compute something else than the model in one piece.
    """
    versions = untested_versions()
    if lm.config.model_type in TESTED_FAMILIES and not versions:
        return
    settings = json.dumps(lm.config.to_dict(), default=str, sort_keys=True)
    classes: tuple[Any, Any] = type(lm), type(lm.config)
    reason = _reason(*classes, settings, needs_eager(lm))
    if reason is None:
        return
    known = lm.config.model_type in TESTED_FAMILIES
    raise ImpRAGError(
        f"{name} ({lm.config.model_type}) cannot be used: {reason}"
        + (f"; ImpRAG was not tested with {versions}: install a tested one" if known else "")
        + ("" if known else "; choose another model family, such as Llama, Qwen or Mistral")
    )


class _Difference(Exception):
    """Says what a small model computes differently in layer groups."""


@functools.cache
def _reason(
    lm_class: Any,
    config_class: Any,
    settings: str,
    eager: bool,
) -> str | None:
    """Why models of this class and configuration cannot be used; None if they can."""
    try:
        config = config_class.from_dict(json.loads(settings))
        with torch.no_grad():
            whole, parts = (small_model(lm_class, config, eager=eager) for _ in range(2))
            if other := other_layers(parts):
                return other
            _compare(whole, parts)
    except _Difference as difference:
        return f"run in layer groups, {difference}"
    except ImpRAGError as error:
        return str(error)
    except Exception as error:  # a strange model may fail in every way
        said = str(error).strip().split("\n", 1)[0][:120]
        return f"a small model of its kind cannot be run in layer groups ({said})"
    return None


def other_layers(lm: PreTrainedModel) -> str | None:
    """Why passages cannot be read through the layers of a model, found by running it once."""
    calls: list[list[tuple[Tensor, Tensor, Tensor]]] = []
    streams: list[Tensor] = []

    def hook(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Any:
        calls[-1].append((query, key, value))
        return key, value, mask

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        calls.append([])
        streams.append(args[0] if args else kwargs["hidden_states"])
        return args, {**kwargs, "state_hook": hook}

    open_attention(lm)
    layers = lm.base_model.layers
    handles = [layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in layers]
    try:
        lm(torch.tensor([[1, 20, 21]]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if any(stream.ndim != 3 for stream in streams):
        return "it runs several streams of hidden states at once"
    silent = [n for n, states in enumerate(calls) if not states]
    if silent:
        kinds = getattr(lm.config, "layer_types", None)
        named = sorted({kinds[n] for n in silent}) if kinds else [type(layers[silent[0]]).__name__]
        return f"it has layers without attention that can be extended ({', '.join(named)})"
    if len(calls) != len(layers) or any(len(states) != 1 for states in calls):
        return "its layers do not call attention once each"
    shapes = {(key.shape, value.shape) for states in calls for _, key, value in states}
    if len(shapes) > 1 or any(key != value for key, value in shapes):
        return "its keys and values are not of one size in all layers (as in latent attention)"
    return None


def _compare(whole: PreTrainedModel, parts: PreTrainedModel) -> None:
    """Compare a model with an equal one that runs in layer groups.

    Raises:
        _Difference: they compute different things.
    """
    from imprag.model.model import ImpRAGModel

    depth = len(parts.base_model.layers)

    def model(b: int, t: int) -> "ImpRAGModel":
        config = ImpRAGConfig(base_model="a small model", b=b, t=t, k=2, max_passage_tokens=16)
        return ImpRAGModel(parts, config, checked=True)

    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in (5, 7, 6, 4)]
    *passages, long, short = rows
    everything = model(0, depth - 1)
    _reads_as_in_context(everything, whole, passages, long)
    some = model(1, depth - 2)
    _batches_as_rows(some, passages, [long, short])
    _decodes_as_uncached(some, passages, [long, short])
    _embeds_as_whole(some, [long, short])


def _reads_as_in_context(
    model: "ImpRAGModel", whole: PreTrainedModel, passages: list[list[int]], prompt: list[int]
) -> None:
    context = [token for passage in passages for token in passage]
    expected = whole(torch.tensor([context + prompt]), use_cache=False).logits
    prefix = model.encode_passages([passages], "full")
    found = model(*pad([prompt], _CPU), fixed(prefix), position_shift=len(context)).logits
    _same("it answers differently than in one piece", found[0], expected[0, -len(prompt) :])


def _batches_as_rows(
    model: "ImpRAGModel", passages: list[list[int]], prompts: list[list[int]]
) -> None:
    def run(rows: list[int]) -> Tensor:
        prefix = model.encode_passages([passages[: n + 1] for n in rows])
        ids, mask = pad([prompts[n] for n in rows], _CPU, left=True)
        logits: Tensor = model(ids, mask, fixed(prefix), position_shift=32).logits
        return logits[:, -1]

    alone = torch.cat([run([n]) for n in range(len(prompts))])
    _same("it answers differently in a batch than alone", run([0, 1]), alone)


def _decodes_as_uncached(
    model: "ImpRAGModel", passages: list[list[int]], prompts: list[list[int]]
) -> None:
    ids, mask = pad(prompts, _CPU, left=True)
    prefix = model.encode_passages([passages, passages[:1]])
    steps = 3
    output = model.generate(
        ids,
        mask,
        fixed(prefix),
        position_shift=32,
        max_new_tokens=steps,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    found = torch.stack(output.logits, dim=1)
    longer = torch.cat([mask, torch.ones(len(prompts), steps, dtype=mask.dtype)], dim=1)
    expected = model(output.sequences, longer, fixed(prefix), position_shift=32).logits
    _same("it decodes differently with a cache", found, expected[:, -steps - 1 : -1])


def _embeds_as_whole(model: "ImpRAGModel", rows: list[list[int]]) -> None:
    whole = model.encode(*pad(rows, _CPU)).embeddings
    if whole.shape[1] != model.embedding_dim:
        raise _Difference("its keys are of another size than its configuration says")
    _same("passages have two embeddings", model.passage_embeddings(*pad(rows, _CPU)), whole)
    ids, mask = pad(rows, _CPU, left=True)
    prefix = model.encode_passages([[]] * len(rows))
    asked = model(ids, mask, fixed(prefix), position_shift=32).query_embeddings
    _same("prompts have two embeddings", model.query_embeddings(ids, mask), asked)


def _same(otherwise: str, found: Tensor, expected: Tensor) -> None:
    error = (found - expected).abs().max()
    if not error <= _TOLERANCE * expected.abs().max():
        raise _Difference(otherwise)
