"""Adapters in 8 bits, small enough to lie in a package."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from imprag.errors import ImpRAGError
from imprag.files import atomic_path, read_json, write_json
from imprag.model.config import ImpRAGConfig

WEIGHTS = "adapter_model.safetensors"
SETTINGS = "adapter_config.json"
_FLOAT8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(_FLOAT8).max

ADAPTER_PREFIX = "base_model.model."
"""What peft puts before the names of all weights in an adapter's file."""


def write_compact_adapter(adapter: Path, out: Path) -> None:
    """Write a LoRA adapter again with its factors in 8-bit floats.

    It stays an adapter of peft, which takes weights of any dtype. Each factor is scaled to the
    range of the 8-bit floats, and the adapter's alpha undoes that. Norms become bfloat16.

    Args:
        adapter: a folder that :func:`save_pretrained` wrote for a model with an adapter.
        out: the folder to make.

    Raises:
        ImpRAGError: there is no adapter, or it is not LoRA.
    """
    settings = _settings(adapter)
    weights = load_file(adapter / WEIGHTS)
    ranks, alphas = {}, {}
    small: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if ".lora_B." in name:
            continue
        if ".lora_A." not in name:
            small[name] = tensor.bfloat16()
            continue
        other = name.replace(".lora_A.", ".lora_B.")
        module = name.partition(".lora_A.")[0].removeprefix(ADAPTER_PREFIX)
        ranks[module] = len(tensor)
        alphas[module] = settings["alpha_pattern"].get(module, settings["lora_alpha"])
        for part in (name, other):
            small[part], scale = _eight_bits(weights[part])
            alphas[module] *= scale
    with atomic_path(out) as folder:
        folder.mkdir()
        save_file(small, folder / WEIGHTS)
        config = ImpRAGConfig.load(adapter)
        settings |= {
            "base_model_name_or_path": config.base_model,  # not where it lay when it was trained
            "rank_pattern": ranks,
            "alpha_pattern": alphas,
            "inference_mode": True,
        }
        write_json(folder / SETTINGS, settings)
        config.save(folder)


def write_changed_adapter(
    adapter: Path, out: Path, module: str, change: Tensor, max_rank: int | None = None
) -> None:
    """Write a LoRA adapter again, with a change of one module's weight added to it.

    The module's factors are in 8 bits, too, where the others are.

    Args:
        adapter: as for :func:`write_compact_adapter`.
        out: the folder to make.
        module: the module's name in the base model; it may have been without an adapter.
        change: (out features, in features).
        max_rank: keep only so much of the change, its largest singular values; all that counts in
            float32 if not given.

    Raises:
        ImpRAGError: there is no adapter, or it is not LoRA.
    """
    settings = _settings(adapter)
    weights = load_file(adapter / WEIGHTS)
    left, values, right = torch.linalg.svd(change.double(), full_matrices=False)
    rank = min(int((values > 1e-6 * values[0]).sum()), max_rank or len(values))
    root = values[:rank].sqrt()
    down, up = root[:, None] * right[:rank], left[:, :rank] * root
    name_a, name_b = (f"{ADAPTER_PREFIX}{module}.lora_{part}.weight" for part in "AB")
    if name_a in weights:
        scale = settings["alpha_pattern"].get(module, settings["lora_alpha"])
        scale /= settings["rank_pattern"].get(module, settings["r"])
        sign, size = (1 if scale > 0 else -1), abs(scale) ** 0.5
        down = torch.cat([size * weights[name_a].double(), down])
        up = torch.cat([sign * size * weights[name_b].double(), up], dim=1)
    rank = len(down)
    alpha = float(rank)  # with which the factors' product is the change itself
    compact = any(tensor.dtype is _FLOAT8 for tensor in weights.values())
    for part, factor in ((name_a, down), (name_b, up)):
        weights[part] = factor.float().contiguous()
        if compact:
            weights[part], scale = _eight_bits(weights[part])
            alpha *= scale
    with atomic_path(out) as folder:
        folder.mkdir()
        save_file(weights, folder / WEIGHTS)
        settings["rank_pattern"][module] = rank
        settings["alpha_pattern"][module] = alpha
        if not any(f".{module}".endswith(f".{name}") for name in settings["target_modules"]):
            settings["target_modules"] = [*settings["target_modules"], module]
        write_json(folder / SETTINGS, settings)
        ImpRAGConfig.load(adapter).save(folder)


def _settings(adapter: Path) -> dict[str, Any]:
    if not (adapter / SETTINGS).is_file():
        raise ImpRAGError(f"{adapter} holds no adapter; train one by a recipe with lora")
    settings = read_json(adapter / SETTINGS)
    if settings.get("peft_type") != "LORA":
        raise ImpRAGError(f"the adapter in {adapter} is {settings.get('peft_type')}, not LORA")
    return dict(settings)


def _eight_bits(tensor: Tensor) -> tuple[Tensor, float]:
    """A tensor as 8-bit floats and the factor that was taken out of it."""
    scale = float(tensor.abs().max()) / _LARGEST or 1.0
    return (tensor / scale).to(_FLOAT8), scale
