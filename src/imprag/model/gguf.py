"""Converts GGUF files to Hugging Face format; refuses those that transformers reads in part."""

import contextlib
import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)

from imprag.errors import ImpRAGError
from imprag.io.files import atomic_path
from imprag.model.base import TELL, quiet_transformers
from imprag.model.load_checks import check_complete
from imprag.model.weight_files import named

_EXPERTS = "_exps."  # these tensors are split or joined by rules of their own
_SCALING = "rope.scaling.type"


def convert_gguf(path: Path, folder: Path) -> None:
    """Write a GGUF file's model in Hugging Face format; float32 keeps all its precision.

    Args:
        path: the file.
        folder: the folder to make.

    Raises:
        ImpRAGError: the file is broken, or transformers does not read all of it.
    """
    logging.getLogger(__name__).info("converting %s into %s, once", path, folder)
    try:
        with quiet_transformers(), _parsed_once():
            lm, found = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32, **TELL
            )
            check_complete(found, path)
            check_all_read(path, lm)
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            # A model loaded from GGUF counts as quantised and refuses to be saved; its weights
            # are plain tensors, so they go into a plain model.
            config = lm.config
            del config.quantization_config
            config.name_or_path = path.name
            with torch.device("meta"):  # no random weights are drawn
                plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            plain.load_state_dict(lm.state_dict(), assign=True)
            plain.generation_config = lm.generation_config
            with atomic_path(folder) as temporary:
                plain.save_pretrained(temporary)
                tokenizer.save_pretrained(temporary)
    except ImpRAGError:
        raise
    except Exception as error:  # the reader of broken files raises errors of many kinds
        raise ImpRAGError(f"cannot read {path} as a GGUF language model: {error}") from error


class _PlainReader(gguf.GGUFReader):  # type: ignore[misc]
    """A reader that slices the mapped file as a plain array.

    A slice of ``numpy.memmap`` is ten times as slow, and the vocabulary takes half a million.
    """

    data: Any

    def _get(self, *arguments: Any, **settings: Any) -> Any:
        if isinstance(self.data, np.memmap):
            self.data = self.data.view(np.ndarray)
        return super()._get(*arguments, **settings)


@contextlib.contextmanager
def _parsed_once() -> Iterator[None]:
    """Let transformers parse a GGUF file, and its table of names, once and not three times."""
    own = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    reader = functools.cache(_PlainReader)
    gguf.GGUFReader = lambda path, *mode: reader(str(path), *mode)
    gguf.get_tensor_name_map = functools.cache(gguf.get_tensor_name_map)
    try:
        yield
    finally:
        for name, function in own.items():
            setattr(gguf, name, function)


def check_all_read(path: Path, lm: PreTrainedModel) -> None:
    """Refuse a GGUF file with tensors or rotary settings that transformers ignores.

    Llama 3 has its rotary frequencies in a tensor, other models have their scaling among the
    settings. transformers reads neither, and the model would silently answer as another one.

    Args:
        path: the file.
        lm: the model that transformers has read from it.

    Raises:
        ImpRAGError: transformers ignored a part of the file; the message names it.
    """
    reader = gguf.GGUFReader(path)
    architecture = _text(reader, "general.architecture")
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=lm.config.to_dict())
    known = get_gguf_hf_weights_map(lm, processor)
    names = (tensor.name for tensor in reader.tensors)
    left_out = [name for name in names if name not in known and _EXPERTS not in name]
    scaling = f"{architecture}.{_SCALING}"
    if _text(reader, scaling) not in ("", "none"):
        left_out.append(scaling)
    if left_out:
        raise ImpRAGError(
            f"cannot load {path}: transformers does not read its {named(sorted(left_out))}, so it "
            "would be another model; take the model in safetensors"
        )


def _text(reader: Any, name: str) -> str:
    field = reader.get_field(name)
    return "" if field is None else str(field.contents())
