"""Checks that a model can be split into layer groups; errors say why not."""

from torch import nn
from transformers import PreTrainedModel

from imprag.errors import ImpRAGError
from imprag.model.config import ImpRAGConfig

_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention", "attention"}
_WINDOWS = ("sliding_window", "attention_chunk_size")


def plain_model(lm: nn.Module) -> PreTrainedModel:
    """The model itself, even if ``torch.compile`` has wrapped it.

    Raises:
        ImpRAGError: something else has wrapped it.
    """
    plain = getattr(lm, "_orig_mod", lm)
    if not isinstance(plain, PreTrainedModel):
        kind, has_adapter = type(plain).__name__, hasattr(plain, "merge_and_unload")
        raise ImpRAGError(
            f"a model of transformers is needed, not {kind}: give the model inside it"
            + (", merged with its adapter by merge_and_unload()" if has_adapter else "")
        )
    return plain


def check_model(lm: PreTrainedModel, config: ImpRAGConfig) -> None:
    """Refuse a model that cannot be split into the layer groups of ``config``.

    Raises:
        ImpRAGError: the model cannot be split; the message says why and what to change.
    """
    _check_family(lm, config.base_model)
    _check_settings(lm, config)


def check_instance(lm: PreTrainedModel, name: str) -> None:
    """Refuse a model whose parts were replaced, compiled or moved, so that no view of it can run.

    Raises:
        ImpRAGError: a part was; the message names it and says how to load the model.
    """
    devices = {parameter.device for parameter in lm.parameters()}
    if len(devices) > 1 or any(device.type == "meta" for device in devices):
        raise ImpRAGError(
            f"the weights of {name} are spread over {', '.join(sorted(map(str, devices)))}: load "
            "it without device_map, on one device"
        )
    for module in (lm, lm.base_model):
        check_forward(module)
    for layer in lm.base_model.layers:
        for part in layer.modules():
            if part._compiled_call_impl is not None or hasattr(part, "_orig_mod"):
                raise ImpRAGError(
                    f"layers of {name} were compiled one by one, so passages cannot be read "
                    "through them: load it again and use compile_bottom and compile_decoding"
                )
        for part in (layer, getattr(layer, "self_attn", layer)):
            if not hasattr(part, "_hf_hook"):  # accelerate's forward calls the original
                check_forward(part)


def check_forward(module: nn.Module) -> None:
    """Refuse a module whose own ``forward`` was replaced: a view of it would run the original's.

    Raises:
        ImpRAGError: it was replaced; the message says what may have done so.
    """
    if "forward" in vars(module):
        raise ImpRAGError(
            f"the forward method of this {type(module).__name__} was replaced (by device_map, "
            "offloading, torch.compile or a patching library), so passages cannot be read through "
            "it: load the model without"
        )


def _check_family(lm: PreTrainedModel, name: str) -> None:
    name = f"{name} ({lm.config.model_type})"
    text_config = lm.config.get_text_config()
    several = text_config is not lm.config
    if several or any(hasattr(lm.config, f"{kind}_config") for kind in ("vision", "audio")):
        raise ImpRAGError(
            f"{name} is a multimodal model: save its language model by itself and load that"
        )
    if not getattr(text_config, "rope_parameters", None):
        raise ImpRAGError(
            f"{name} has no rotary position embedding (RoPE), which ImpRAG's reading needs; "
            "choose a model such as Llama, Qwen, Mistral or SmolLM"
        )
    others = set(getattr(text_config, "layer_types", None) or ()) - _ATTENTION
    if others:
        raise ImpRAGError(
            f"{name} has layers without attention that ImpRAG can extend "
            f"({', '.join(sorted(others))}); choose a model with attention in all layers"
        )
    if getattr(text_config, "kv_lora_rank", None):
        raise ImpRAGError(
            f"{name} has latent attention, whose keys and values are not of one size; choose a "
            "model with plain or grouped attention heads"
        )
    layers = getattr(lm.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not lm._supports_attention_backend:
        raise ImpRAGError(
            f"{name} does not use transformers' attention interface, through which ImpRAG reads "
            "passages; choose another model family"
        )


def _check_settings(lm: PreTrainedModel, config: ImpRAGConfig) -> None:
    name, text_config = config.base_model, lm.config.get_text_config()
    depth = len(lm.base_model.layers)
    if config.t >= depth:
        raise ImpRAGError(
            f"t={config.t}, but {name} has {depth} layers: t can be {depth - 1} at most"
        )
    kinds = getattr(text_config, "layer_types", None)
    windowed = kinds is None or not set(kinds[: config.t + 1]) <= {"full_attention", "attention"}
    needed = config.max_passage_tokens * (config.k if config.passage_encoding == "full" else 1)
    for window in (getattr(text_config, setting, None) for setting in _WINDOWS):
        if isinstance(window, int) and windowed and window < needed:
            raise ImpRAGError(
                f"{name} attends within a sliding window of {window} tokens, but a sequence of "
                f"passages has up to {needed}; lower max_passage_tokens"
                + (" or k" if config.passage_encoding == "full" else "")
            )
