"""Checks the arguments of transformers' ``TrainingArguments`` in a recipe's ``trainer``."""

import difflib
import enum
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from imprag.errors import ImpRAGError

DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-5,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,
    "optim": "adamw_torch_fused",
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "max_grad_norm": 1.0,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "bf16": True,
    "seed": 0,
    "save_steps": 500,
    "save_total_limit": 2,
    "logging_steps": 10,
    "eval_steps": 500,
    "metric_for_best_model": "exact_match",
    "dataloader_num_workers": 0,
}
"""Defaults of ``trainer``; a run folder's recipe states all of them."""

_OWNED = {
    r"output_dir": "--out names the run folder",
    r"max_steps|num_train_epochs": "give train.steps or train.epochs",
    r"resume_from_checkpoint|ignore_data_skip|restore_callback.*": "a run is resumed by itself",
    r"(auto_find|per_device|per_gpu)_.*|data_seed|train_sampling_strategy|group_by_length"
    r"|length_column_name": "the section batch decides what a batch holds",
    r"remove_unused_columns|label_names|dataloader_(?!num_workers).*|past_index|include_.*"
    r"|average_tokens_across_devices": "ImpRAG makes and counts its batches itself",
    r"do_(train|eval|predict)|eval_(strategy|do_.*|use_.*|accumulation_steps)|greater_is_better"
    r"|load_best_model_at_end|(bf|fp)16_full_eval|prediction_loss_only|batch_eval_metrics": (
        "the section evaluation decides what is measured, and the best checkpoint is kept"
    ),
    r"(save|logging)_strategy|save_only_model|logging_nan_inf_filter|enable_jit_checkpoint": (
        "give save_steps or logging_steps; checkpoints are complete, so that runs can be resumed"
    ),
    r"fp16.*|half_precision.*": "bf16 chooses between bfloat16 (true) and float32 (false)",
    r"fsdp.*|deepspeed|accelerator_config|parallelism_config|local_rank|use_cpu|no_cuda"
    r"|use_mps_device|ddp_(find_unused_parameters|static_graph)": (
        "devices are chosen by torchrun or accelerate launch"
    ),
    r"(gradient|activation)_checkpointing_kwargs|activation_checkpointing": (
        "give gradient_checkpointing: true"
    ),
    r"torch_compile.*|jit.*|use_liger_kernel|liger_kernel_config|neftune_noise_alpha|use_cache"
    r"|label_smoothing_factor|optim_target_modules|debug": (
        "ImpRAG's training step does not support it"
    ),
    r"push_to_hub.*|hub_.*": "push the trained model to the hub instead",
}
"""Arguments that a recipe cannot give, as patterns, with the reason."""

_BYSTANDERS = r"(save|log|logging|eval|ddp|dataloader|trackio)_.*|report_to|run_name|project"
_BYSTANDERS += r"|disable_tqdm|metric_for_best_model|skip_memory_metrics"
_POSITIVE = r"learning_rate|gradient_accumulation_steps|(save|logging|eval)_steps|save_total_limit"


def trainer_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the arguments that a recipe gives under ``trainer``, and add the defaults.

    Raises:
        ImpRAGError: an argument is unknown, decided by ImpRAG, or has an invalid value.
    """
    from transformers import TrainingArguments

    known = {field.name for field in fields(TrainingArguments) if field.init}
    types = get_type_hints(TrainingArguments)
    for name, value in given.items():
        for pattern, reason in _OWNED.items():
            if re.fullmatch(pattern, name):
                raise ImpRAGError(f"{name} cannot be given here: {reason}")
        if name not in known:
            free = [each for each in known if not any(re.fullmatch(p, each) for p in _OWNED)]
            near = difflib.get_close_matches(name, sorted(free), 3)
            advice = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ImpRAGError(f"transformers' TrainingArguments have no {name}{advice}")
        _check_value(name, value, types[name])
    return {**DEFAULTS, **given}


def decides_training(name: str) -> bool:
    """Whether an argument affects the trained weights; those of saving and logging do not."""
    return re.fullmatch(_BYSTANDERS, name) is None


def _check_value(name: str, value: Any, hint: Any) -> None:
    """Check a value's type, membership in an enumeration, and a number's sign."""
    if isinstance(value, str) and (choices := list(_choices(hint))):
        if value not in choices:
            near = difflib.get_close_matches(value, choices, 3, 0.3) or choices
            raise ImpRAGError(f"{name} is {value!r}, but should be one of {', '.join(near)}")
        return
    try:
        settings = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
        TypeAdapter(hint, config=settings).validate_python(value)
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"].removeprefix("Input ")
        raise ImpRAGError(f"{name} is {value!r}, but {message[:1].lower()}{message[1:]}") from None
    if isinstance(value, int | float) and not isinstance(value, bool):
        above = bool(re.fullmatch(_POSITIVE, name))
        if value < 0 or (above and value == 0):
            bound = "must be greater than 0" if above else "must not be negative"
            raise ImpRAGError(f"{name} is {value}, but {bound}")


def _choices(hint: Any) -> Iterator[str]:
    """The values of the enumerations in a type."""
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        yield from (str(member.value) for member in hint)
    for argument in get_args(hint):
        yield from _choices(argument)
