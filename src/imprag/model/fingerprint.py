"""Fingerprints: one short text for everything that the states of a model depend on.

An index and a KV cache hold the fingerprint of the model that made them and refuse every other
model. It covers the weights of the layers in question, the model's ``config.json`` and the
tokenizer.
"""

import contextlib
import hashlib
import json
import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel

from imprag.errors import ImpRAGError
from imprag.model.adapter import Adapter
from imprag.model.weight_files import TensorFiles

PREFIX = "v2-"
"""Begins all fingerprints that cover the configuration, the tokenizer and the weights' own
precision; those of earlier versions are 32 hexadecimal digits."""

QUERIES = ("q_proj", "q_norm")
"""Modules of a layer's attention that compute queries and nothing else, if a model has them."""

_WITHOUT_EFFECT = frozenset(  # of config.json, on the states of a text
    [
        "_name_or_path",
        "name_or_path",
        "_model_name_or_path",
        "architectures",
        "auto_map",
        "transformers_version",
        "dtype",
        "torch_dtype",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "unk_token_id",
        "sep_token_id",
        "cls_token_id",
        "decoder_start_token_id",
        "use_cache",
        "return_dict",
        "output_attentions",
        "output_hidden_states",
        "tie_word_embeddings",
        "id2label",
        "label2id",
        "problem_type",
        "task_specific_params",
        "pretraining_tp",
        "torchscript",
        "initializer_range",
        "initializer_factor",
        "attention_dropout",
        "hidden_dropout",
        "embd_pdrop",
        "resid_pdrop",
        "attn_pdrop",
        "dropout",
        "classifier_dropout",
        "router_aux_loss_coef",
        "output_router_logits",
        "chunk_size_feed_forward",
        "is_encoder_decoder",
    ]
)
_ORIGIN = "_imprag_origin"
_CHUNK = 1 << 18  # numbers compared at a time: they fit a processor's cache


class Origin:
    """The files of a model's weights, which hold them in their own precision.

    A model may run in fewer bits than its files have. Its fingerprint is that of the files, so it
    is the same in every dtype and distinguishes fine-tunings that rounding hides.

    Args:
        folder: the folder of the model's files.
        adapter: the folder of an adapter that was merged into the model.
    """

    def __init__(self, folder: Path, adapter: Path | None = None) -> None:
        self.folder = folder
        self.adapter = adapter

    def attach(self, lm: PreTrainedModel) -> None:
        """Attach this origin to a model, for its fingerprints."""
        setattr(lm, _ORIGIN, self)

    @staticmethod
    def of(lm: PreTrainedModel) -> "Origin | None":
        """The origin that is attached to a model, if any."""
        origin: Origin | None = getattr(lm, _ORIGIN, None)
        return origin

    def weights(self) -> "_OriginWeights | None":
        """The weights; None if the files cannot be read any more."""
        unreadable = OSError, SafetensorError, ImpRAGError, RuntimeError, pickle.UnpicklingError
        with contextlib.suppress(*unreadable):
            adapter = Adapter(self.adapter) if self.adapter else None
            return _OriginWeights(TensorFiles(self.folder), adapter)
        return None


class _OriginWeights:
    def __init__(self, files: TensorFiles, adapter: Adapter | None) -> None:
        self._files = files
        self._adapter = adapter

    def get(self, name: str) -> Tensor | None:
        tensor = self._files.get(name)
        if self._adapter is not None and tensor is not None and self._adapter.changes(name):
            tensor = self._adapter.merged(name, tensor.float())
        return tensor


def model_fingerprint(
    lm: PreTrainedModel,
    tokenizer: Any,
    depth: int | None = None,
    *,
    last_queries: bool = True,
    settings: dict[str, Any] | None = None,
) -> str:
    """Fingerprint of everything that the states of a text in a model's first layers depend on.

    Args:
        lm: the model.
        tokenizer: its tokenizer.
        depth: number of layers; if not given, the whole model with its output layer.
        last_queries: whether the query projection of the last of these layers counts.
        settings: further settings that the states depend on, as JSON.
    """
    parts = [
        weights_fingerprint(lm, depth, last_queries=last_queries),
        config_fingerprint(lm.config),
        tokenizer_fingerprint(tokenizer),
        json.dumps(settings, sort_keys=True),
    ]
    return PREFIX + _short(json.dumps(parts))


def weights_fingerprint(
    lm: PreTrainedModel, depth: int | None = None, *, last_queries: bool = True
) -> str:
    """Fingerprint of the input embedding and the first ``depth`` layers, or of all weights.

    It covers the weights as the model's files hold them, so it is the same in every dtype that the
    model is loaded in. Weights that have changed since, or that transformers renames or joins at
    loading, count as they are in memory.

    Args:
        lm, depth, last_queries: as for :func:`model_fingerprint`.
    """
    origin = Origin.of(lm)
    weights = None if origin is None else origin.weights()

    def digest(item: tuple[str, Tensor]) -> bytes:
        name, tensor = item
        own = _own_precision(name, tensor.detach().cpu(), weights)
        return f"{name}{tuple(own.shape)}".encode() + _digest(own)

    tensors = sorted(_tensors(lm, depth, last_queries))
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
        return _short(b"".join(threads.map(digest, tensors)))


def rounded_weights_fingerprint(lm: PreTrainedModel) -> str:
    """The fingerprint of a base model in adapters of earlier versions.

    It covers the weights, rounded to bfloat16, and nothing else.
    """
    digest = hashlib.sha256()
    parts: list[nn.Module] = [lm.get_input_embeddings(), *lm.base_model.layers]
    for number, part in enumerate(parts):
        for name, tensor in sorted(part.state_dict().items()):
            digest.update(f"{number}.{name}{tuple(tensor.shape)}".encode())
            digest.update(_bytes(tensor.detach().to("cpu", torch.bfloat16)))
    return digest.hexdigest()[:32]


def config_fingerprint(config: Any) -> str:
    """Fingerprint of a model's configuration without the values that no state depends on."""
    return _short(json.dumps(_normal(config.get_text_config().to_diff_dict()), sort_keys=True))


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Fingerprint of everything that the tokens of a text depend on."""
    specials = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and hasattr(backend, "to_str"):
        # The part before has the version, truncation and padding, which belong to single calls.
        content = backend.to_str().partition('"added_tokens"')[2]
    else:
        vocabulary = sorted(tokenizer.get_vocab().items())
        content = json.dumps([vocabulary, tokenizer(_PROBE)["input_ids"]])
    return _short(f"{specials} {content}")


_PROBE = (
    '  The Quick brown fox\'s 1,234.5 jumps\n\tüber 東京, हिन्दी и «ещё» 🙂 -- "e.g." x_y=z; <a>'
)


def _tensors(
    lm: PreTrainedModel, depth: int | None, last_queries: bool
) -> Iterator[tuple[str, Tensor]]:
    """The weights in question by their names in the whole model."""
    if depth is None:
        yield from _of_module("", lm)
        return
    name_of = {id(module): name for name, module in lm.named_modules()}
    layers = lm.base_model.layers[:depth]
    left_out = set() if last_queries else set(QUERIES)
    embedding = lm.get_input_embeddings()
    yield from _of_module(f"{name_of[id(embedding)]}.", embedding)
    for number, layer in enumerate(layers, 1):
        for name, tensor in _of_module(f"{name_of[id(layer)]}.", layer):
            if number < depth or left_out.isdisjoint(name.split(".")):
                yield name, tensor


def _of_module(start: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    seen = set()  # tied weights have two names
    for name, value in module.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor) and id(value) not in seen:
            seen.add(id(value))
            yield start + name, value


def _own_precision(name: str, tensor: Tensor, weights: _OriginWeights | None) -> Tensor:
    """The weight in its file, if rounding it to the model's dtype gives this one; else this one."""
    if weights is None or tensor.dtype not in (torch.bfloat16, torch.float16):
        return tensor
    stored = weights.get(name)
    if stored is None or stored.shape != tensor.shape:
        return tensor
    chunks = (torch.split(one.flatten(), _CHUNK) for one in (stored, tensor))
    pairs = zip(*chunks, strict=True)
    same = all(torch.equal(own.to(tensor.dtype), run) for own, run in pairs)
    return stored if same else tensor


def _digest(tensor: Tensor) -> bytes:
    """SHA-256 of a tensor's numbers; the same in every floating-point dtype that holds them."""
    if tensor.dtype.is_floating_point:
        tensor = tensor if tensor.dtype is torch.bfloat16 else _narrowest(tensor.float())
    return f"{tensor.dtype}".encode() + hashlib.sha256(_bytes(tensor)).digest()


def _narrowest(tensor: Tensor) -> Tensor:
    """A float32 tensor in bfloat16 if that holds the same numbers."""
    for part in (tensor[:1], tensor):  # the first row is enough most often
        narrow = part.bfloat16()
        if not torch.equal(narrow.float(), part):
            return tensor
    return narrow


def _bytes(tensor: Tensor) -> Any:
    flat = tensor.contiguous().flatten()
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""


def _normal(value: Any) -> Any:
    """A value without the entries that have no effect or are not set; 1 and 1.0 are the same."""
    if isinstance(value, dict):
        kept = {str(key): _normal(x) for key, x in value.items() if key not in _WITHOUT_EFFECT}
        return {key: x for key, x in kept.items() if x is not None}
    if isinstance(value, list | tuple):
        return [_normal(x) for x in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def _short(content: str | bytes) -> str:
    raw = content.encode() if isinstance(content, str) else content
    return hashlib.sha256(raw).hexdigest()[:32]
