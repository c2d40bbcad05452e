"""The shape of a language model, known without its weights."""

from pathlib import Path
from typing import Any

from imprag.errors import ImpRAGError
from imprag.files import read_json

# Published figures, so that a plan needs neither the hub nor a licence that opens its files. Each
# is (model type, settings of its transformers configuration).
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
    """Layers of a model that is here or well known; None if it would have to be fetched."""
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
    """The transformers configuration of a model: its shape without its weights.

    Raises:
        ImpRAGError: the model is neither here nor well known, and the hub does not have it.
    """
    from transformers import AutoConfig

    from imprag.model.base import quiet_transformers

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
    """The table's entry for a name such as ``Qwen/Qwen3-0.6B-Base``; what is a path is none."""
    if Path(name_or_path).exists():
        return None
    name = name_or_path.rsplit("/", 1)[-1].lower()
    return _PUBLISHED.get(name.removesuffix("-base").removesuffix("-instruct"))
