"""Saving and loading whole ImpRAG models: settings with full weights or with an adapter."""

import dataclasses
import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor

from imprag.errors import ImpRAGError
from imprag.io.files import atomic_path, cache_dir, expand_home
from imprag.io.locking import make_once
from imprag.model.adapter import SETTINGS, WEIGHTS, Adapter
from imprag.model.base import (
    EMBEDDED,
    BaseModel,
    load_base_model,
    load_tokenizer,
    quiet_transformers,
    resolve_device,
    resolve_dtype,
)
from imprag.model.config import CONFIG_NAME, ImpRAGConfig
from imprag.model.fingerprint import (
    PREFIX,
    Origin,
    model_fingerprint,
    rounded_weights_fingerprint,
)
from imprag.model.model import ImpRAGModel
from imprag.model.peft_adapters import has_adapter, save_adapter

DEFAULT = "default"
"""The trained model in this package: SmolLM2-135M with an adapter."""
DEFAULT_FOLDER = Path(__file__).parent.parent / "default"
BASELINE = "baseline.json"  # marks the model of a baseline, which reads passages in the context
EMBEDDINGS = "embeddings.safetensors"
"""The default model's embeddings of the built-in corpus ``default``, in its folder."""


def default_config(base_model: str, num_layers: int) -> ImpRAGConfig:
    """Layer boundaries for a model that has none: b = 7, t at two thirds of the layers.

    The paper's choices are b=7, t=19 of 28 layers and b=7, t=23 of 32; in shallower models b is
    a quarter of the layers.
    """
    b = max(0, min(7, num_layers // 4))
    return ImpRAGConfig(base_model=base_model, b=b, t=max(b + 1, 2 * num_layers // 3))


def read_config(name_or_path: str | Path) -> ImpRAGConfig | None:
    """The settings of a trained model, whose weights are not loaded; None of another model."""
    folder = DEFAULT_FOLDER if str(name_or_path) == DEFAULT else _own_folder(name_or_path)
    if folder is None or not (folder / CONFIG_NAME).exists():
        return None
    return ImpRAGConfig.load(folder)


def load_pretrained(
    name_or_path: str | Path,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "auto",
    **settings: Any,
) -> tuple[ImpRAGModel, Any]:
    """Load an ImpRAG model, or a plain language model as an untrained one.

    Args:
        name_or_path: ``"default"``, a folder or hub repository written by
            :func:`save_pretrained` or by peft, or anything that :func:`load_base_model` takes.
        dtype, device: as for :func:`load_base_model`.
        **settings: replace those of the model's ``ImpRAGConfig``.

    Returns:
        the model and its tokenizer.

    Raises:
        ImpRAGError: there is no such model, its files are damaged or lack weights, or it is an
            adapter of another base model.
    """
    device = resolve_device(device)
    dtype = resolve_dtype(dtype, device)
    folder = _default() if str(name_or_path) == DEFAULT else _own_folder(name_or_path)
    config = None if folder is None else read_config(folder)
    if folder is not None and (folder / SETTINGS).exists():
        lm, tokenizer = _merged(config, folder, device)
        lm = lm.to(dtype)
    else:
        lm, tokenizer = load_base_model(folder or name_or_path, dtype, device)
    if config is None:
        config = default_config(
            str(name_or_path) if folder is None else _base_of_adapter(folder),
            len(getattr(lm.base_model, "layers", [])),
        )
    config = dataclasses.replace(config, **settings)
    if config.frozen_passages == "none":
        return ImpRAGModel(lm, config), tokenizer
    frozen, _ = _base(config, device, str(name_or_path))
    return ImpRAGModel(lm, config, frozen.to(dtype)), tokenizer


def save_pretrained(
    model: ImpRAGModel,
    tokenizer: Any,
    folder: Path,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write settings and weights into a new folder, atomically.

    If the model carries a LoRA adapter (`imprag.model.peft_adapters.add_adapter`), only the adapter
    is written; the settings name its base model and that model's fingerprint, if known. Otherwise
    the full weights and the tokenizer are written.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        folder: the folder.
        weights: of ``model.lm``; by default those that it holds. A sharded model holds a part.

    Raises:
        ImpRAGError: the folder exists and is not empty, or cannot be written.
    """
    folder = expand_home(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ImpRAGError(f"{folder} exists already; choose another folder or remove it")
    with atomic_path(folder) as temporary, quiet_transformers():
        if has_adapter(model.lm):
            temporary.mkdir()
            save_adapter(model.lm, temporary, weights)
        else:
            model.lm.save_pretrained(temporary, state_dict=weights)
            tokenizer.save_pretrained(temporary)
        model.config.save(temporary)


def _merged(config: ImpRAGConfig | None, folder: Path, device: torch.device) -> BaseModel:
    """A base model with the adapter of a folder merged into it, in float32, and its tokenizer."""
    adapter = Adapter(folder)
    if config is None:
        lm, tokenizer = load_base_model(_base_of_adapter(folder), torch.float32, device)
        if (folder / "tokenizer_config.json").exists():
            tokenizer = load_tokenizer(folder)
    else:
        lm, tokenizer = _base(config, device, folder)
    adapter.merge_into(lm)
    if (origin := Origin.of(lm)) is not None:
        Origin(origin.folder, folder).attach(lm)
    return BaseModel(lm, tokenizer)


def _base_of_adapter(folder: Path) -> str:
    """The base model that peft has recorded in an adapter's folder."""
    name = Adapter(folder).settings.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ImpRAGError(
            f"{folder} is an adapter that names no base model; write the model's name or folder "
            f"into {folder / SETTINGS} as base_model_name_or_path"
        )
    return name


def default_fingerprint() -> str:
    """Fingerprint of the default model as it lies in the package: weights and all settings."""
    key = hashlib.sha256()
    for name in (SETTINGS, WEIGHTS, CONFIG_NAME):
        key.update((DEFAULT_FOLDER / name).read_bytes())
    return key.hexdigest()[:12]


def _default() -> Path:
    """The cache folder of the default model, which is merged once, in some seconds."""
    folder = cache_dir() / "models" / f"{DEFAULT}-{default_fingerprint()}"

    def make() -> None:
        config = ImpRAGConfig.load(DEFAULT_FOLDER)
        lm, tokenizer = _merged(config, DEFAULT_FOLDER, torch.device("cpu"))
        save_pretrained(ImpRAGModel(lm, config), tokenizer, folder)

    return make_once(folder, make)


def _base(config: ImpRAGConfig, device: torch.device, name: Path | str) -> tuple[Any, Any]:
    """The base model of a trained one, in float32, and its tokenizer."""
    base, tokenizer = load_base_model(config.base_model, torch.float32, device)
    wanted = config.base_model_fingerprint
    if wanted is not None:
        if not wanted.startswith(PREFIX):  # of an earlier version
            found = rounded_weights_fingerprint(base)
        else:
            found = model_fingerprint(base, tokenizer)
        if wanted != found:
            raise ImpRAGError(
                f"{name} was trained on another {config.base_model} ({wanted}) than the one found "
                f"here ({found}): other weights, configuration or tokenizer"
            )
    return base, tokenizer


def _own_folder(name_or_path: str | Path) -> Path | None:
    """The folder of a path or repository, if it has ``imprag.json`` or an adapter."""
    path = expand_home(name_or_path)
    if path.exists():
        return path if _is_own(path) else None
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
        if not _is_own(found):
            return None
        return Path(snapshot_download(str(name_or_path), local_files_only=offline))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
        return None  # load_base_model says what is wrong with the name


def _is_own(folder: Path) -> bool:
    return (folder / CONFIG_NAME).exists() or (folder / SETTINGS).exists()


def push_to_hub(
    model: ImpRAGModel, tokenizer: Any, repository: str, *, private: bool = True
) -> str:
    """Upload what :func:`save_pretrained` writes to the Hugging Face hub.

    Returns:
        the address of the commit.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        save_pretrained(model, tokenizer, folder)
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=folder)
    return str(commit.commit_url)
