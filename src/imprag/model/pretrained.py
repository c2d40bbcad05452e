"""Saving and loading whole ImpRAG models: settings with full weights or with an adapter."""

import dataclasses
import hashlib
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from imprag.errors import ImpRAGError
from imprag.files import atomic_path, cache_dir
from imprag.model.adapters import has_adapter, save_adapter
from imprag.model.base import (
    EMBEDDED,
    load_base_model,
    quiet_transformers,
    resolve_device,
    resolve_dtype,
    weights_fingerprint,
)
from imprag.model.compact import WEIGHTS
from imprag.model.config import CONFIG_NAME, ImpRAGConfig
from imprag.model.layer_groups import LayerGroups

ADAPTER_CONFIG_NAME = "adapter_config.json"
DEFAULT = "default"
"""The trained model that lies in this package: SmolLM2-135M with an adapter."""
DEFAULT_FOLDER = Path(__file__).parent.parent / "default"
EMBEDDINGS = "embeddings.safetensors"
"""In the default's folder, its embeddings of the built-in corpus of the same name."""


def default_config(base_model: str, num_layers: int) -> ImpRAGConfig:
    """Boundaries to begin with for a model that comes without: b=7, t at two thirds.

    The paper's choices are b=7, t=19 of 28 layers and b=7, t=23 of 32; in shallower models b is
    a quarter of the layers.
    """
    b = max(0, min(7, num_layers // 4))
    return ImpRAGConfig(base_model=base_model, b=b, t=max(b + 1, 2 * num_layers // 3))


def load_pretrained(
    name_or_path: str | Path,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "auto",
    **settings: Any,
) -> tuple[LayerGroups, Any]:
    """Load an ImpRAG model, or a plain language model as an untrained one.

    Args:
        name_or_path: ``"default"``, a folder or hub repository written by
            :func:`save_pretrained`, or anything that :func:`load_base_model` takes.
        dtype, device: as for :func:`load_base_model`.
        **settings: in place of those stored in the model's ``ImpRAGConfig``.

    Returns:
        the model and its tokenizer.
    """
    device = resolve_device(device)
    dtype = resolve_dtype(dtype, device)
    folder = _default() if str(name_or_path) == DEFAULT else _imprag_folder(name_or_path)
    if folder is None:
        lm, tokenizer = load_base_model(name_or_path, dtype, device)
        config = default_config(str(name_or_path), len(getattr(lm.base_model, "layers", [])))
    else:
        config = ImpRAGConfig.load(folder)
        if (folder / ADAPTER_CONFIG_NAME).exists():
            lm, tokenizer = _merged(config, folder, device)
            lm = lm.to(dtype)
        else:
            lm, tokenizer = load_base_model(folder, dtype, device)
    config = dataclasses.replace(config, **settings)
    if config.frozen_passages == "none":
        return LayerGroups(lm, config), tokenizer
    frozen, _ = _base(config, device, str(name_or_path))
    return LayerGroups(lm, config, frozen.to(dtype)), tokenizer


def save_pretrained(groups: LayerGroups, tokenizer: Any, folder: Path) -> None:
    """Write settings and weights into a new folder, atomically.

    Where the model carries a LoRA adapter (:func:`imprag.model.adapters.add_adapter`), only the
    adapter is written; the settings name its base model, and its fingerprint if they hold one.
    Otherwise the full weights and the tokenizer.

    Raises:
        ImpRAGError: the folder exists and is not empty, or cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ImpRAGError(f"{folder} exists already; choose another folder or remove it")
    with atomic_path(folder) as temporary, quiet_transformers():
        if has_adapter(groups.lm):
            temporary.mkdir()
            save_adapter(groups.lm, temporary)
        else:
            groups.lm.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        groups.config.save(temporary)


def _merged(config: ImpRAGConfig, folder: Path, device: torch.device) -> tuple[Any, Any]:
    """A base model with the adapter of a folder merged into it, in float32, and its tokenizer."""
    from peft import PeftModel  # slow to import, and not needed once the default is in the cache

    base, tokenizer = _base(config, device, folder)
    # In float64, so that all machines come to the same weights and so to the same fingerprint,
    # however they add up products.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks for what transformers renamed
        adapted = PeftModel.from_pretrained(base, folder, low_cpu_mem_usage=True).double()
    return adapted.merge_and_unload().float().eval(), tokenizer


def _default() -> Path:
    """The folder of the default model, merged once into the cache: that takes some seconds."""
    key = hashlib.sha256()
    for name in (ADAPTER_CONFIG_NAME, WEIGHTS, CONFIG_NAME):
        key.update((DEFAULT_FOLDER / name).read_bytes())
    folder = cache_dir() / "models" / f"{DEFAULT}-{key.hexdigest()[:12]}"
    if not folder.is_dir():
        config = ImpRAGConfig.load(DEFAULT_FOLDER)
        lm, tokenizer = _merged(config, DEFAULT_FOLDER, torch.device("cpu"))
        save_pretrained(LayerGroups(lm, config), tokenizer, folder)
    return folder


def _base(config: ImpRAGConfig, device: torch.device, name: Path | str) -> tuple[Any, Any]:
    """The base model of a trained one, in float32, and its tokenizer."""
    base, tokenizer = load_base_model(config.base_model, torch.float32, device)
    fingerprint = weights_fingerprint(base, len(base.base_model.layers))
    if config.base_model_fingerprint not in (None, fingerprint):
        raise ImpRAGError(
            f"{name} was trained on other weights of {config.base_model} "
            f"({config.base_model_fingerprint}) than those found here ({fingerprint})"
        )
    return base, tokenizer


def _imprag_folder(name_or_path: str | Path) -> Path | None:
    """The folder with ``imprag.json`` behind a path or a hub repository, if there is one."""
    path = Path(name_or_path)
    if path.exists():
        return path if (path / CONFIG_NAME).exists() else None
    if str(name_or_path) == EMBEDDED:
        return None
    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", "")
    try:
        found = Path(
            snapshot_download(
                str(name_or_path),
                allow_patterns=[CONFIG_NAME, "adapter_*", "*.json"],
                local_files_only=offline,
            )
        )
        if not (found / CONFIG_NAME).exists():
            return None
        return Path(snapshot_download(str(name_or_path), local_files_only=offline))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
        return None  # load_base_model says what is wrong with the name
