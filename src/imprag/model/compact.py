"""Adapters in 8 bits, small enough for a package, and adapters with one weight changed."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from imprag.errors import ImpRAGError
from imprag.io.files import atomic_path, write_json
from imprag.model.adapter import PREFIX, SETTINGS, WEIGHTS, Adapter
from imprag.model.config import ImpRAGConfig

_FLOAT8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(_FLOAT8).max


def write_compact_adapter(adapter: Path, out: Path) -> None:
    """Write a LoRA adapter with its factors in 8-bit floats.

    The result is still a peft adapter, for peft takes weights of any dtype. Each factor is scaled
    to the range of 8-bit floats, and the adapter's alpha undoes the scaling. Norms become bfloat16.

    Args:
        adapter: a folder that :func:`save_pretrained` wrote for a model with an adapter.
        out: the folder to make.

    Raises:
        ImpRAGError: there is no adapter, or it is not LoRA.
    """
    large = Adapter(adapter)
    if large.settings.get("lora_bias"):
        raise ImpRAGError(f"the adapter in {adapter} has biases of its own (lora_bias)")
    alphas = {module: large.alpha(module) for module in large.modules}
    small: dict[str, Tensor] = {}
    for name, tensor in large.tensors.items():
        module, found, _ = name.removeprefix(PREFIX).rpartition(".lora_")
        if found and name.endswith((".lora_A.weight", ".lora_B.weight")):
            small[name], scale = _eight_bits(tensor)
            alphas[module] *= scale
        else:
            small[name] = tensor.bfloat16()
    config = ImpRAGConfig.load(adapter)
    # The base model's name, not its path on the machine that trained the adapter.
    settings = _exact_settings(large, alphas) | {"base_model_name_or_path": config.base_model}
    _write(out, small, settings, config)


def write_changed_adapter(
    adapter: Path,
    out: Path,
    module: str,
    change: Tensor,
    max_rank: int | None = None,
    config: ImpRAGConfig | None = None,
) -> None:
    """Write a LoRA adapter with a change of one module's weight added to it.

    The module's factors are stored in 8 bits if the others are.

    Args:
        adapter: as for :func:`write_compact_adapter`.
        out: the folder to make.
        module: the module's name in the base model; it may have been without an adapter.
        change: (out features, in features).
        max_rank: greatest rank of the change; its largest singular values are kept. If not given,
            all that matter in float32.
        config: the model's settings; those in the adapter's folder if not given.

    Raises:
        ImpRAGError: there is no adapter, it is not LoRA, or it is DoRA (:func:`can_be_changed`).
    """
    old = Adapter(adapter)
    if not can_be_changed(adapter):
        raise ImpRAGError(
            f"the adapter in {adapter} is DoRA, to which no change of a weight can be added; save "
            "the whole model instead"
        )
    config = config or ImpRAGConfig.load(adapter)
    weights = dict(old.tensors)
    alphas = {name: old.alpha(name) for name in old.modules}
    whole = f"{PREFIX}{module}.weight"
    if whole in weights:
        weights[whole] = (weights[whole].double() + change.double()).to(weights[whole].dtype)
        _write(out, weights, _exact_settings(old, alphas), config)
        return
    left, values, right = torch.linalg.svd(change.double(), full_matrices=False)
    rank = min(int((values > 1e-6 * values[0]).sum()), max_rank or len(values))
    root = values[:rank].sqrt()
    down, up = root[:, None] * right[:rank], left[:, :rank] * root
    name_a, name_b = (f"{PREFIX}{module}.lora_{part}.weight" for part in "AB")
    if name_a in weights:
        scale = old.scaling(module)
        sign, size = (1 if scale > 0 else -1), abs(scale) ** 0.5
        down = torch.cat([size * weights[name_a].double(), down])
        up = torch.cat([sign * size * weights[name_b].double(), up], dim=1)
    alphas[module] = old.divisor(len(down))  # the product is then the change itself
    compact = any(tensor.dtype is _FLOAT8 for tensor in weights.values())
    for part, factor in ((name_a, down), (name_b, up)):
        weights[part] = factor.float().contiguous()
        if compact:
            weights[part], scale = _eight_bits(weights[part])
            alphas[module] *= scale
    settings = _exact_settings(old, alphas)
    settings["rank_pattern"][module] = len(down)
    _write(out, weights, settings, config)


def can_be_changed(adapter: Path) -> bool:
    """Whether a change of one weight can be added to an adapter: not to DoRA."""
    return not Adapter(adapter).uses_dora


def _exact_settings(adapter: Adapter, alphas: dict[str, float]) -> dict[str, Any]:
    """An adapter's settings with the full names of its modules in place of any expression."""
    parts = ("A.weight", "embedding_A")
    names = {name: [f"{PREFIX}{name}.lora_{part}" for part in parts] for name in adapter.modules}
    ranks = {
        module: len(adapter.tensors[key])
        for module, keys in names.items()
        for key in keys
        if key in adapter.tensors
    }
    return {
        **adapter.settings,
        "target_modules": list(alphas),
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "inference_mode": True,
    }


def _write(
    out: Path, weights: dict[str, Tensor], settings: dict[str, Any], config: ImpRAGConfig
) -> None:
    """Write the folder of an adapter."""
    with atomic_path(out) as folder:
        folder.mkdir()
        save_file(weights, folder / WEIGHTS)
        write_json(folder / SETTINGS, settings)
        config.save(folder)


def _eight_bits(tensor: Tensor) -> tuple[Tensor, float]:
    """A tensor as 8-bit floats, and the factor that restores its scale."""
    scale = float(tensor.float().abs().max()) / _LARGEST or 1.0
    return (tensor.float() / scale).to(_FLOAT8), scale
