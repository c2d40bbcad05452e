"""A LoRA adapter in peft's file format: reading, checking and merging into its base model.

The result is that of peft's ``merge_and_unload``, with three differences: an adapter that lacks
weights, or has weights that fit nowhere, is refused by name; one weight can be merged without the
others; and the result is the same on every machine, whatever the order of its sums.
"""

import math
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imprag.errors import ImpRAGError
from imprag.io.files import read_json
from imprag.model.weight_files import named, read_tensors

WEIGHTS = "adapter_model.safetensors"
SETTINGS = "adapter_config.json"
PREFIX = "base_model.model."
"""What peft puts before the names of all weights in an adapter's file."""

_PARTS = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_B.bias": "bias",
    "lora_embedding_A": "A",
    "lora_embedding_B": "B",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}
_PART = re.compile(rf"(?P<module>.+?)\.(?P<part>{'|'.join(map(re.escape, _PARTS))})")

_MERGED = frozenset(
    [
        "r",
        "lora_alpha",
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        "use_dora",
        "lora_bias",
        "bias",
        "fan_in_fan_out",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "modules_to_save",
    ]
)  # peft ignores fan_in_fan_out in linear layers as well
_WITHOUT_EFFECT = frozenset(  # on the merged weights
    [
        "peft_type",
        "task_type",
        "inference_mode",
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "peft_version",
        "lora_dropout",
        "init_lora_weights",
        "runtime_config",
        "eva_config",
        "loftq_config",
        "qalora_group_size",
        "megatron_core",
        "ensure_weight_tying",
    ]
)
_KINDS: dict[str, tuple[type, ...]] = {
    "lora_alpha": (int, float),
    "alpha_pattern": (dict,),
    "target_modules": (str, list),
    "exclude_modules": (str, list),
    "layers_to_transform": (int, list),
    "layers_pattern": (str, list),
    "modules_to_save": (list,),
}
_KEEPS_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights`` that leave the base model's weights as they are."""


class Adapter:
    """A folder with ``adapter_config.json`` and ``adapter_model.safetensors``.

    Attributes:
        settings: the content of ``adapter_config.json``.
        tensors: the tensors of the file by name.

    Raises:
        ImpRAGError: there is no adapter, it is not LoRA, a file is damaged, or it has a setting
            that cannot be merged into the base model's weights.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / SETTINGS).is_file():
            raise ImpRAGError(f"{folder} holds no adapter; train one by a recipe with lora")
        self.settings: dict[str, Any] = _settings(self.folder / SETTINGS)
        self.tensors = read_tensors(self.folder / WEIGHTS)
        self._low_rank: dict[str, dict[str, Tensor]] = {}
        self._whole: dict[str, Tensor] = {}
        for name, tensor in self.tensors.items():
            if not tensor.is_floating_point() or not tensor.float().isfinite().all():
                raise ImpRAGError(
                    f"{self.folder / WEIGHTS}: {name} holds integers, or numbers that are not "
                    "finite; take the adapter before it was quantised, or train it again"
                )
            plain = name.removeprefix(PREFIX)
            if match := _PART.fullmatch(plain):
                parts = self._low_rank.setdefault(match["module"], {})
                parts[_PARTS[match["part"]]] = tensor
            else:
                self._whole[plain.replace(".base_layer.", ".")] = tensor

    @property
    def uses_dora(self) -> bool:
        """Whether the adapter is DoRA, which scales changed rows by their norms."""
        return bool(self.settings.get("use_dora"))

    @property
    def modules(self) -> list[str]:
        """Names of the modules with low-rank factors."""
        return list(self._low_rank)

    def alpha(self, module: str) -> float:
        """The ``lora_alpha`` of a module."""
        patterns = self.settings.get("alpha_pattern") or {}
        return float(patterns.get(_pattern_of(patterns, module), self.settings["lora_alpha"]))

    def scaling(self, module: str) -> float:
        """The factor on the product of a module's factors."""
        return self.alpha(module) / self.divisor(len(self._low_rank[module]["A"]))

    def divisor(self, rank: int) -> float:
        """The divisor of alpha: the rank, or its square root with ``use_rslora``."""
        return math.sqrt(rank) if self.settings.get("use_rslora") else float(rank)

    def changes(self, name: str) -> bool:
        """Whether the adapter changes a weight of the model."""
        module, _, kind = name.rpartition(".")
        parts = self._low_rank.get(module, {})
        return name in self._whole or bool(
            parts if kind == "weight" else parts.get(kind) is not None
        )

    def merged(self, name: str, weight: Tensor) -> Tensor:
        """A weight of the base model with the adapter merged into it, computed in float64.

        Args:
            name: the weight's name in the model.
            weight: the base model's weight.

        Returns:
            the merged weight in float32, on the weight's device.
        """
        module, _, kind = name.rpartition(".")
        result = self._whole.get(name, weight).to(weight.device, torch.float64)
        parts = {key: x.to(weight.device) for key, x in self._low_rank.get(module, {}).items()}
        if parts and kind == "weight":
            change = _exact_product(parts["B"], parts["A"])
            if self._is_transposed(module):
                change = change.T
            result = result + change * self.scaling(module)
            if "magnitude" in parts:
                axis = 1 if self._is_transposed(module) else 0
                norm = result.norm(dim=1 - axis, keepdim=True)
                result = result * parts["magnitude"].double().reshape(norm.shape) / norm
        elif kind == "bias" and "bias" in parts:
            result = result + parts["bias"].double() * self.scaling(module)
        return result.float()

    @torch.no_grad()
    def merge_into(self, lm: nn.Module) -> None:
        """Merge the adapter into the weights of its base model, which must be in float32.

        Raises:
            ImpRAGError: the adapter's weights are not those that its settings ask for, or they do
                not fit the model.
        """
        self._check(lm)
        for name, parameter in lm.named_parameters():
            if self.changes(name):
                # Not copied into the former weights, which are pages of a mapped file.
                parameter.data = self.merged(name, parameter).contiguous()

    def _is_transposed(self, module: str) -> bool:
        """Whether the weight has the shape (in, out), as an embedding has."""
        return module in self._embeddings

    @cached_property
    def _embeddings(self) -> frozenset[str]:
        ends = (".lora_embedding_A", ".lora_embedding_B")
        return frozenset(
            name.removeprefix(PREFIX).rpartition(".")[0]
            for name in self.tensors
            if name.endswith(ends)
        )

    def _check(self, lm: nn.Module) -> None:
        """Compare the adapter's weights with its settings and with the model."""
        modules = dict(lm.named_modules())
        wanted = {
            name
            for name, module in modules.items()
            if isinstance(module, nn.Linear | nn.Embedding) and self._targets(name, lm, module)
        }
        lacking = []
        for name in sorted(wanted):
            embeds = isinstance(modules[name], nn.Embedding)
            file_name = "lora_embedding_{}" if embeds else "lora_{}.weight"
            lacking += [
                f"{PREFIX}{name}.{file_name.format(part)}"
                for part in "AB"
                if part not in self._low_rank.get(name, {})
            ]
        if self.uses_dora:
            lacking += [
                f"{PREFIX}{name}.lora_magnitude_vector"
                for name in sorted(wanted)
                if "magnitude" not in self._low_rank.get(name, {})
            ]
        saved = self.settings.get("modules_to_save") or []
        for name in modules:
            if any(name == one or name.endswith(f".{one}") for one in saved):
                own = dict(modules[name].named_parameters())
                lacking += [
                    f"{PREFIX}{name}.{one}" for one in own if f"{name}.{one}" not in self._whole
                ]
        parameters = dict(lm.named_parameters(remove_duplicate=False))
        foreign = [name for name in self._low_rank if name not in wanted]
        foreign += [name for name in self._whole if name not in parameters]
        if lacking or foreign:
            faults = [f"lacks {named(lacking)}"] if lacking else []
            if foreign:
                faults.append(f"has weights without a place in the model: {named(foreign)}")
            raise ImpRAGError(
                f"{self.folder / WEIGHTS} {' and '.join(faults)}; is it whole, and does it belong "
                "to this base model?"
            )
        for name, parameter in parameters.items():
            if self.changes(name):
                self._check_shape(name, parameter)
        self._check_tied(lm, parameters)

    def _check_shape(self, name: str, parameter: Tensor) -> None:
        module, _, kind = name.rpartition(".")
        parts = self._low_rank.get(module, {})
        found = self._whole[name].shape if name in self._whole else parameter.shape
        if name not in self._whole and kind == "weight":
            sides = (parts["B"].shape[0], parts["A"].shape[-1])
            same = len(parts["A"]) == parts["B"].shape[-1]
            transposed = self._is_transposed(module)
            found = torch.Size(sides[::-1] if transposed else sides) if same else torch.Size()
        if found != parameter.shape:
            raise ImpRAGError(
                f"{self.folder / WEIGHTS}: the weights of {name} have the shape {tuple(found)}, "
                f"not {tuple(parameter.shape)} as the base model's"
            )

    def _check_tied(self, lm: nn.Module, parameters: Mapping[str, Tensor]) -> None:
        """Refuse an adapter that unties input embedding and output layer, or changes both."""
        own = {id(parameter): name for name, parameter in lm.named_parameters()}
        # An embedding with factors is saved along with them, unchanged: that unties nothing.
        untied = {name for name in self._whole if name.rpartition(".")[0] not in self._low_rank}
        for name, parameter in parameters.items():
            first = own[id(parameter)]
            if name != first and (self.changes(name) or first in untied):
                raise ImpRAGError(
                    f"the adapter in {self.folder} changes {first} or {name}, which are one weight "
                    "in its base model; merge it with peft and save the model without tied weights"
                )
        biases = [name for name, parts in self._low_rank.items() if "bias" in parts]
        if lost := [name for name in biases if f"{name}.bias" not in parameters]:
            raise ImpRAGError(
                f"the adapter in {self.folder} adds a bias to {named(lost)}, which has none"
            )

    def _targets(self, name: str, lm: nn.Module, module: nn.Module) -> bool:
        """Whether the settings give a module low-rank factors; peft's rules."""
        settings = self.settings
        if _matches(settings.get("exclude_modules") or [], name):
            return False
        saved = settings.get("modules_to_save") or []
        if any(re.match(rf"(^|.*\.){re.escape(one)}($|\..*)", name) for one in saved):
            return False
        targets = settings.get("target_modules") or []
        if targets == "all-linear":
            output = getattr(lm, "get_output_embeddings", lambda: None)()
            return isinstance(module, nn.Linear) and module is not output
        if isinstance(targets, str) or not _matches(targets, name):
            return _matches(targets, name)
        layers = settings.get("layers_to_transform")
        if layers is None or layers == []:
            return True
        patterns = settings.get("layers_pattern") or [r"[^.]*"]
        patterns = [patterns] if isinstance(patterns, str) else patterns
        found = (re.match(rf"(?:^|.*?\.){one}\.(\d+)\.", name) for one in patterns)
        numbers = [int(match[1]) for match in found if match]
        return bool(numbers) and numbers[0] in ([layers] if isinstance(layers, int) else layers)


def _settings(path: Path) -> dict[str, Any]:
    settings = read_json(path)
    if not isinstance(settings, dict):
        raise ImpRAGError(f"{path} must hold one JSON object")
    if settings.get("peft_type") != "LORA":
        raise ImpRAGError(f"the adapter in {path.parent} is {settings.get('peft_type')}, not LORA")
    if settings.get("lora_alpha") is None:
        raise ImpRAGError(f"{path} lacks lora_alpha")
    for name, kinds in _KINDS.items():
        value = settings.get(name)
        if value is not None and not (isinstance(value, kinds) and _are_expressions(value)):
            raise ImpRAGError(f"{path}: {name} cannot be {value!r}")
    others = [
        name
        for name, value in settings.items()
        if value not in (None, False, {}, []) and name not in _MERGED | _WITHOUT_EFFECT
    ]
    start = settings.get("init_lora_weights")
    if start not in _KEEPS_BASE:
        others.append(f"init_lora_weights: {start}")
    if others:
        raise ImpRAGError(
            f"the adapter in {path.parent} cannot be merged into its base model because of its "
            f"settings {named(others)}; merge it with peft and give the merged model"
        )
    return settings


def _are_expressions(value: Any) -> bool:
    """Whether a text, or every key of a pattern, is a regular expression; lists hold names."""
    texts = [value] if isinstance(value, str) else list(value) if isinstance(value, dict) else []
    try:
        return all(re.compile(text) for text in texts)
    except re.error:
        return False


def _matches(targets: str | list[str], name: str) -> bool:
    """Whether an expression matches a name, or the name ends with one of a list."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == one or name.endswith(f".{one}") for one in targets)


def _pattern_of(patterns: Mapping[str, Any], module: str) -> str:
    """The first key of ``alpha_pattern`` that matches a module."""
    fitting = (key for key in patterns if re.match(rf"(.*\.)?({key})$", module))
    return next(fitting, module)


def _exact_product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in float64 without rounding in its sums, so that their order does not matter.

    Both factors are rounded to a fixed point with so few binary digits (23 at rank 64, where a
    float32 number has 24) that every partial sum is a float64 number.
    """
    digits = (53 - math.ceil(math.log2(max(right.shape[0], 1)))) // 2
    return _fixed_point(left, digits) @ _fixed_point(right, digits)


def _fixed_point(tensor: Tensor, digits: int) -> Tensor:
    wide = tensor.double()
    largest = float(wide.abs().max()) if wide.numel() else 0.0
    if not 0 < largest < math.inf:
        return wide
    step = math.ldexp(1.0, math.frexp(largest)[1] - digits)
    return (wide / step).round() * step
