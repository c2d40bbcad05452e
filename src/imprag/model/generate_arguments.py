"""Which arguments of Hugging Face ``generate`` work with retrieval inside the prompt's pass.

The query embedding is taken at the prompt's last token, in one pass of the whole prompt. Arguments
that split that pass, run the prompt twice, guess tokens ahead or bring other inputs would take it
elsewhere. Arguments that are known to work are listed here and all others refused, since new
releases of transformers add new ones.
"""

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from imprag.errors import ImpRAGError

_TOKEN_IDS = {"bos_token_id", "eos_token_id", "pad_token_id"}
CHOICES = {
    *_TOKEN_IDS,
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p"),
    *("epsilon_cutoff", "eta_cutoff", "renormalize_logits", "remove_invalid_values"),
    *("num_beams", "length_penalty", "early_stopping"),
    *("repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "sequence_bias"),
    *("suppress_tokens", "begin_suppress_tokens", "forced_eos_token_id"),
    *("exponential_decay_length_penalty", "min_new_tokens", "max_new_tokens", "max_time"),
}
"""Arguments that choose the next tokens or the end; a `GenerationConfig` has them."""
CALLBACKS = {"logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn"}
"""Arguments that are functions of the tokens so far."""
OUTPUTS = {
    *("streamer", "num_return_sequences", "return_dict_in_generate"),
    *("output_scores", "output_logits"),
}
"""Arguments that determine what is returned."""
STATIC_CACHE = {"cache_implementation": "static"}
"""The only value of this argument that works, besides None."""

_INSTEAD = {
    "max_length": "use max_new_tokens",
    "min_length": "use min_new_tokens",
    "stop_strings": "use stop",
    "num_return_sequences": "there is one answer for each prompt; ask for several by several calls",
    "return_dict_in_generate": "the answers come with their passages and timings",
    "streamer": "use stream",
}


def check_arguments(arguments: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The arguments for ``generate``, without those that only state a default.

    Args:
        arguments: the caller's arguments.
        known: the allowed names.

    Raises:
        ImpRAGError: an argument would give other passages or tokens or several results, or is
            unknown.
    """
    checked = dict(arguments)
    if checked.pop("use_cache", True) not in (True, None):
        raise ImpRAGError(
            "use_cache=False: every new token would run the prompt again; leave it out"
        )
    config = checked.get("generation_config")
    if config is not None:
        if not isinstance(config, GenerationConfig):
            raise ImpRAGError("generation_config must be a GenerationConfig of transformers")
        given = _differences(config)
        if "use_cache" in given:
            check_arguments({"use_cache": given.pop("use_cache")}, known)
        _refuse_unknown(given, known, "generation_config: ")
    elif "generation_config" in checked:
        del checked["generation_config"]
    _refuse_unknown(checked, {*known, "generation_config"}, "")
    length = checked.get("max_new_tokens", 1)
    if isinstance(length, bool) or not isinstance(length, int):
        raise ImpRAGError(f"max_new_tokens must be a whole number, not {length!r}")
    if length < 1:
        raise ImpRAGError(
            f"max_new_tokens must be at least 1, not {length}; retrieve finds passages without "
            "an answer"
        )
    return checked


def own_generation_config(lm: PreTrainedModel) -> GenerationConfig:
    """The model's generation settings without those that do not work with it or with retrieval.

    ``generation_config.json`` comes with a model's files and may hold anything; transformers takes
    from it every argument that a call does not give.
    """
    own = lm.generation_config or GenerationConfig()
    chosen = {name: value for name, value in own.to_dict().items() if name in CHOICES}
    pad = chosen.get("pad_token_id")
    if isinstance(pad, int) and pad >= lm.get_input_embeddings().num_embeddings:
        del chosen["pad_token_id"]  # transformers then pads answers with the end token
    return GenerationConfig(**{name: x for name, x in chosen.items() if x is not None})


def check_one_beam(lm: PreTrainedModel, arguments: Mapping[str, Any]) -> None:
    """Refuse beam search, whose rows are other texts after every token.

    Args:
        lm: the model; its own settings apply where the call says nothing.
        arguments: for ``generate``, checked.

    Raises:
        ImpRAGError: the call or the model's settings ask for several beams.
    """
    places = arguments, arguments.get("generation_config"), own_generation_config(lm)
    given = [p.get("num_beams") if isinstance(p, Mapping) else p and p.num_beams for p in places]
    beams = next((number for number in given if number is not None), 1)
    if beams != 1:
        raise ImpRAGError(
            f"num_beams is {beams}, but what an answer read is only known without beam search: "
            "set num_beams to 1"
        )


def _differences(config: GenerationConfig) -> dict[str, Any]:
    """The settings of a configuration that differ from transformers' defaults."""
    differences: dict[str, Any] = config.to_diff_dict()
    differences.pop("transformers_version", None)
    return {name: value for name, value in differences.items() if not name.startswith("_")}


def _refuse_unknown(arguments: Mapping[str, Any], known: Collection[str], place: str) -> None:
    for name, value in arguments.items():
        if name in known or value is None or STATIC_CACHE.get(name) == value:
            continue
        if name in _INSTEAD:
            raise ImpRAGError(f"{place}{name}: {_INSTEAD[name]}")
        nearest = difflib.get_close_matches(name, known, 1, 0.8)
        advice = f"did you mean {nearest[0]}?" if nearest else "leave it out"
        raise ImpRAGError(
            f"{place}{name} does not work with retrieval inside the prompt's one pass; {advice}"
        )
