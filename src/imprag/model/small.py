"""A small random model of the same class as a large one, for checks that take milliseconds."""

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

VOCABULARY = 97
_HEADS, _HEAD_DIM, _EXPERTS = 4, 8, 4
_LONGEST = 512

_SIZES: dict[str, int] = {
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size": _HEADS * _HEAD_DIM,
    "hidden_size_per_layer_input": 8,
    "intermediate_size": 48,
    "intermediate_size_mlp": 48,
    "dense_intermediate_size": 48,
    "ffn_hidden_size": 48,
    "expert_ffn_hidden_size": 16,
    "num_attention_heads": _HEADS,
    "head_dim": _HEAD_DIM,
    "global_head_dim": _HEAD_DIM,
    "swa_head_dim": _HEAD_DIM,
    "v_head_dim": _HEAD_DIM,
    "swa_v_head_dim": _HEAD_DIM,
    "qk_rope_head_dim": _HEAD_DIM,
    "qk_nope_head_dim": _HEAD_DIM,
    "qk_head_dim": 2 * _HEAD_DIM,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "query_pre_attn_scalar": _HEAD_DIM,
    "num_experts": _EXPERTS,
    "num_local_experts": _EXPERTS,
    "n_routed_experts": _EXPERTS,
    "moe_num_experts": _EXPERTS,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "laurel_rank": 8,
    "max_position_embeddings": _LONGEST,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
_WINDOWS = ("sliding_window", "attention_chunk_size", "local_attention")
_LEFT_OUT = ("architectures", "dtype", "model_type", "quantization_config", "transformers_version")


def small_model(
    lm_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    seed: int = 0,
    *,
    eager: bool = False,
) -> PreTrainedModel:
    """A random float32 model of a few layers, with at least one of every kind in ``config``.

    Its weights are larger than usual at initialisation, so that every part matters.

    Raises:
        Exception: of any kind, if the configuration cannot be made small.
    """
    state = torch.random.get_rng_state()
    try:
        torch.manual_seed(seed)
        attention = {"attn_implementation": "eager"} if eager else {}
        small = small_config(config)
        lm: PreTrainedModel = lm_class._from_config(small, dtype=torch.float32, **attention).eval()
        with torch.no_grad():
            for parameter in lm.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.15)
    finally:
        torch.random.set_rng_state(state)
    lm.generation_config.pad_token_id = 0
    return lm


def small_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """``config`` with small sizes and few layers, and otherwise unchanged."""
    values = {name: x for name, x in config.to_dict().items() if name not in _LEFT_OUT}
    layers = _layers(config)
    heads, depth = values.get("num_attention_heads"), values.get("num_hidden_layers")
    for name, size in _SIZES.items():
        if isinstance(values.get(name), int):
            values[name] = size
    if "head_dim" in values:
        values["head_dim"] = _HEAD_DIM
    for name in _CHOSEN:
        if isinstance(values.get(name), int):
            values[name] = min(values[name], 2)
    for name in ("num_key_value_heads", "num_global_key_value_heads", "swa_num_key_value_heads"):
        if name in values:
            values[name] = {heads: _HEADS, None: _HEADS, 1: 1}.get(values[name], _HEADS // 2)
    for name in _WINDOWS:
        if isinstance(values.get(name), int):
            values[name] = _LONGEST
    for name, value in values.items():
        if isinstance(value, list) and len(value) == depth:  # an entry for each layer
            values[name] = value[:layers]
    if isinstance(values.get("per_layer_config"), dict):
        settings = values["per_layer_config"].items()
        values["per_layer_config"] = {n: x for n, x in settings if int(n) < layers}
    values["num_hidden_layers"] = layers
    if values.get("num_kv_shared_layers"):
        values["num_kv_shared_layers"] = 1
    if values.get("first_k_dense_replace"):
        values["first_k_dense_replace"] = 1
    values["rope_parameters"] = _rope(values.get("rope_parameters"), values)
    return type(config)(**values)


def _layers(config: PreTrainedConfig) -> int:
    """The number of first layers that include every kind of layer; four at least."""
    kinds = getattr(config, "layer_types", None) or []
    return max([4, *(kinds.index(kind) + 1 for kind in set(kinds))])


def _rope(parameters: Any, values: dict[str, Any]) -> Any:
    """RoPE settings for small heads: lists of factors are cut to the number of frequencies."""
    if not isinstance(parameters, dict):
        return parameters
    if any(isinstance(value, dict) for value in parameters.values()):
        return {kind: _rope(settings, values) for kind, settings in parameters.items()}
    parameters = dict(parameters)
    size = int(_HEAD_DIM * (parameters.get("partial_rotary_factor") or 1.0)) // 2
    for name in ("short_factor", "long_factor"):
        if isinstance(parameters.get(name), list):
            parameters[name] = parameters[name][:size]
    if isinstance(parameters.get("original_max_position_embeddings"), int):
        parameters["original_max_position_embeddings"] = _LONGEST // 2
    return parameters
