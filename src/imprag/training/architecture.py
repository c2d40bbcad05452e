"""Sizes of a language model, from its configuration alone, without its weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from imprag.errors import ImpRAGError
from imprag.io.files import read_json
from imprag.model.base import quiet_transformers
from imprag.model.support import check_model

if TYPE_CHECKING:
    from imprag.model.config import ImpRAGConfig
    from imprag.training.lora_settings import LoraSettings
    from imprag.training.recipe import Recipe

# Published configurations, so that a cost estimate needs neither the hub nor access to a gated
# model. Each is (model type, settings of its transformers configuration).
_LLAMA3_ROPE = {"rope_type": "default", "rope_theta": 500000.0}
_PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "smollm2-135m": (
        "llama",
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 64,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        },
    ),
    "qwen3-0.6b": (
        "qwen3",
        {
            "vocab_size": 151936,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
    ),
    "llama-3.2-3b": (
        "llama",
        {
            "vocab_size": 128256,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 28,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": True,
            "rope_parameters": _LLAMA3_ROPE,
        },
    ),
    "llama-3.1-8b": (
        "llama",
        {
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": False,
            "rope_parameters": _LLAMA3_ROPE,
        },
    ),
}


def num_layers(name_or_path: str) -> int | None:
    """Number of layers of a local or well-known model; None if it would have to be downloaded."""
    published = _published(name_or_path)
    if published is not None:
        return int(published[1]["num_hidden_layers"])
    path = Path(name_or_path) / "config.json"
    if not path.is_file():
        return None
    content = read_json(path)
    layers = content.get("text_config", content).get("num_hidden_layers")
    return int(layers) if layers is not None else None


def model_config(name_or_path: str) -> Any:
    """The transformers configuration of a model.

    Raises:
        ImpRAGError: the model is neither local nor well known, nor on the hub.
    """
    published = _published(name_or_path)
    if published is not None:
        return AutoConfig.for_model(published[0], **published[1])
    path = Path(name_or_path)
    try:
        with quiet_transformers():
            if path.is_file():
                return AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
            return AutoConfig.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        raise ImpRAGError(
            f"no model {name_or_path!r}: neither a folder, a .gguf file, nor loadable from the "
            "Hugging Face hub; check model.base"
        ) from error


def _published(name_or_path: str) -> tuple[str, dict[str, Any]] | None:
    """The table's entry for a name such as ``Qwen/Qwen3-0.6B-Base``; None for a path."""
    if Path(name_or_path).exists():
        return None
    name = name_or_path.rsplit("/", 1)[-1].lower()
    return _PUBLISHED.get(name.removesuffix("-base").removesuffix("-instruct"))


class Architecture:
    """Sizes of a language model and of its layer groups, counted on the meta device.

    Args:
        recipe: gives the model, its layer boundaries and the trained weights.

    Raises:
        ImpRAGError: there is no such model, it has too few layers, or it lacks layers or
            projections that shall get adapters.
    """

    def __init__(self, recipe: "Recipe") -> None:
        config = model_config(recipe.model.base)
        with torch.device("meta"):
            lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        settings = recipe.model.to_config()
        check_model(lm, settings)
        text = config.get_text_config()
        self.b, self.t = recipe.model.b, recipe.model.t
        self.hidden: int = text.hidden_size
        self.intermediate: int = text.intermediate_size
        self.heads: int = text.num_attention_heads
        self.key_heads: int = getattr(text, "num_key_value_heads", None) or self.heads
        self.head_dim: int = getattr(text, "head_dim", None) or self.hidden // self.heads
        self.vocabulary: int = text.vocab_size
        layers: list[nn.Module] = list(lm.base_model.layers)
        self.layers = len(layers)
        self.layer_parameters: int = _count(layers[0])
        self.total = _count(lm)
        self.head: int = _count(lm.get_output_embeddings())
        groups = {
            name: [layers[i] for i in numbers]
            for name, numbers in settings.layer_groups(self.layers).items()
        }
        self.groups = {name: sum(map(_count, group)) for name, group in groups.items()}
        frozen = _count(lm.get_input_embeddings()) if recipe.train.freeze_embeddings else 0
        self.trained = self.total - frozen
        if recipe.lora is not None:
            check_adapted(groups, recipe.lora, settings)
            last_norms = [child for child in lm.base_model.children() if is_norm(child)]
            last = last_group(groups)
            normed = {**groups, last: [*groups[last], *last_norms]}
            self.trained = sum(
                _lora_parameters(group, recipe.lora, adapter.rank)
                + recipe.lora.norms * _vectors(normed[name])
                for name, group in groups.items()
                if (adapter := recipe.lora.groups.get(name)) is not None and adapter.trained
            )

    @property
    def dimension(self) -> int:
        """Dimension of an embedding: h_k · d_h."""
        return self.key_heads * self.head_dim

    @property
    def kv_bytes(self) -> int:
        """Bytes of a passage token's keys and values at layers b..t in bfloat16."""
        return 2 * (self.t - self.b + 1) * self.dimension * 2

    def activation_bytes(self, precision: str) -> int:
        """Bytes that one layer saves per token for its backward pass.

        Two norms save their input and their normalized input in float32. Projections save their
        inputs; under autocast, each saves its own copy in bfloat16. Attention saves queries, keys,
        values and its output; the MLP saves its gate before and after the activation, the up
        projection and their product.
        """
        attention = 2 * (self.heads + self.key_heads) * self.head_dim
        if precision == "bf16":
            kept = 26 * self.hidden + 2 * (attention + 4 * self.intermediate)
        else:
            kept = 4 * (6 * self.hidden + attention + 4 * self.intermediate)
        return kept + 8 + 4 * self.heads  # the norms' scales and the softmax's sums, float32


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def is_norm(module: nn.Module) -> bool:
    """Whether all parameters of a module itself are vectors, as those of norms are."""
    own = list(module.parameters(recurse=False))
    return bool(own) and all(parameter.ndim == 1 for parameter in own)


def _vectors(layers: Sequence[nn.Module]) -> int:
    """Number of parameters of the layers' norms."""
    return sum(
        sum(parameter.numel() for parameter in module.parameters(recurse=False))
        for layer in layers
        for module in layer.modules()
        if is_norm(module)
    )


def last_group(groups: Mapping[str, Sequence[object]]) -> str:
    """The last group with layers, which the norm after the last layer belongs to."""
    return [name for name, layers in groups.items() if layers][-1]


def check_adapted(
    groups: Mapping[str, Sequence[nn.Module]], lora: "LoraSettings", config: "ImpRAGConfig"
) -> None:
    """Check that the layers that shall get adapters are there, with all projections.

    Args:
        groups: the layers of each group, by its name.
        lora: the adapters.
        config: the layer boundaries.

    Raises:
        ImpRAGError: a group with an adapter has no layers, or they lack a projection that
            `lora.targets` names.
    """
    for name in lora.groups:
        if not groups[name]:
            raise ImpRAGError(
                f"lora.{name}: there are no such layers with b = {config.b} and t = {config.t}; "
                "leave it out"
            )
        known = {
            path.rpartition(".")[2]
            for layer in groups[name]
            for path, module in layer.named_modules()
            if isinstance(module, nn.Linear)
        }
        for target in lora.targets:
            if target not in known:
                raise ImpRAGError(
                    f"lora.targets: the {name} layers have no projection {target!r}; they have "
                    + ", ".join(sorted(known))
                )


def _lora_parameters(layers: Sequence[nn.Module], lora: "LoraSettings", rank: int) -> int:
    """Number of parameters of an adapter: rank · (inputs + outputs) of each adapted projection."""
    total = 0
    for target in lora.targets:
        found = [
            module
            for layer in layers
            for path, module in layer.named_modules()
            if isinstance(module, nn.Linear) and path.rsplit(".", 1)[-1] == target
        ]
        total += sum(rank * (m.in_features + m.out_features) for m in found)
    return total
