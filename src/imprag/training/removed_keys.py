"""Keys that recipes had in earlier versions: what to write instead."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from imprag.errors import ImpRAGError


class Removed(NamedTuple):
    """A key that recipes no longer have.

    Attributes:
        key: the dotted key; ``*`` is any number in a list.
        default: the value whose behaviour is left; old files may still give it.
        advice: what to write instead of another value.
    """

    key: str
    default: Any
    advice: str


_PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

REMOVED = (
    Removed(
        "model.start_share",
        0.0,
        "interpolate saved weights after the run, or fit queries by imprag adapt --wise-ft-alpha",
    ),
    Removed("model.pooling_point", "last", "a passage's embedding is taken at its own last token"),
    Removed("model.rope", "before", "embeddings are taken before the rotary embedding"),
    Removed("model.score_scale", None, "scores are scaled by 1/sqrt(h_k * d_h)"),
    Removed("data.*.retrieval", None, "a task says whether passages are retrieved for its prompts"),
    Removed("model.reading_score_weight", 0.0, "use model.attention_score_bias"),
    Removed("data.*.wordings", [], "use data.*.prompt_templates"),
    Removed(
        "data.*.verify",
        False,
        "make a file of the task verification by examples/default_model/verification.py, and read "
        "that",
    ),
    Removed("batch.memory", 0, "use batch.cross_batch_memory"),
    Removed("stages.refresh_steps", None, "use stages.mine_every"),
    Removed("teacher.positives", 5, "use batch.positives"),
    Removed("batch.kind", "examples", "give batch.grid, such as [6, 6], for batches of grids"),
    Removed("batch.answer_check", True, "a passage that contains an answer is never a negative"),
    Removed(
        "batch.alike_rows",
        False,
        "use batch.sampler: similar_names, which examples/default_model/train.py adds",
    ),
    Removed("batch.same_passage", 0, "use batch.questions_per_passage"),
    Removed("batch.about_candidates", 0, "use batch.questions_per_passage"),
    Removed("stages.warmup.refresh_steps", None, "use stages.mine_every"),
    Removed("stages.self_distillation.refresh_steps", None, "use stages.mine_every"),
    Removed(
        "stages.warmup.score_distillation",
        None,
        "the labels of the teacher's ranks (batch.positives) gave better results",
    ),
    *(
        Removed(
            f"stages.self_distillation.{name}",
            1.0,
            f"use stages.self_distillation.objective, {{name: self_distillation, {name}: ...}}",
        )
        for name in ("target_temperature", "score_temperature")
    ),
    Removed("optimizer.learning_rate", 1e-5, "use trainer.learning_rate"),
    Removed("optimizer.bottom_learning_rate", None, "use train.bottom_learning_rate"),
    Removed("optimizer.weight_decay", 0.0, "use trainer.weight_decay"),
    Removed("optimizer.betas", [0.9, 0.999], "use trainer.adam_beta1 and trainer.adam_beta2"),
    Removed("optimizer.warmup_steps", 0, "use trainer.warmup_steps"),
    Removed(
        "optimizer.schedule",
        "linear",
        "use trainer.lr_scheduler_type (cosine, or constant_with_warmup for constant)",
    ),
    Removed("optimizer.max_grad_norm", 1.0, "use trainer.max_grad_norm"),
    Removed("train.precision", "bf16", "use trainer.bf16: false for fp32"),
    Removed("train.seed", 0, "use trainer.seed"),
    Removed("train.gradient_accumulation", 1, "use trainer.gradient_accumulation_steps"),
    Removed("train.gradient_checkpointing", False, "use trainer.gradient_checkpointing"),
    Removed("train.save_steps", 500, "use trainer.save_steps"),
    Removed("train.keep_checkpoints", 2, "use trainer.save_total_limit"),
    Removed("train.logging_steps", 10, "use trainer.logging_steps"),
    Removed("train.data_workers", 0, "use trainer.dataloader_num_workers"),
    *(
        Removed(f"lora.{group}.targets", _PROJECTIONS, "use lora.targets, which serves all groups")
        for group in ("bottom", "reading", "top")
    ),
    Removed("lora.dropout", 0.0, "adapters are trained without dropout"),
    Removed("evaluation.steps", 500, "use trainer.eval_steps"),
    Removed("evaluation.metric", "exact_match", "use trainer.metric_for_best_model"),
)


def drop_removed_keys(content: dict[str, Any]) -> None:
    """Delete removed keys that hold their default, in place.

    Raises:
        ImpRAGError: removed keys hold other values; the message names their replacements.
    """
    _drop_kind(content.get("batch"))
    advice: dict[str, list[str]] = {}
    for removed in REMOVED:
        *sections, name = removed.key.split(".")
        for place, section in _sections_at(content, sections):
            if name in section and (value := section.pop(name)) != removed.default:
                key = ".".join([*place, name])
                advice.setdefault(removed.advice, []).append(f"{key} (value {value!r:.60})")
    if advice:
        parts = [
            f"{', '.join(keys)} {'was' if len(keys) == 1 else 'were'} removed: {text}"
            for text, keys in advice.items()
        ]
        raise ImpRAGError("; ".join(parts))
    if not content.get("optimizer", True):
        del content["optimizer"]


def _drop_kind(batch: Any) -> None:
    """Drop ``batch.kind`` of earlier recipes, and a grid that ``kind: examples`` did not use."""
    if isinstance(batch, dict):
        if batch.get("kind") == "examples":
            batch.pop("grid", None)
        elif batch.get("kind") == "grid" and batch.get("grid") is not None:
            del batch["kind"]


def _sections_at(
    content: Any, sections: Sequence[str], place: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """The sections that match a dotted key, each with its place."""
    if not sections:
        if isinstance(content, dict):
            yield place, content
        return
    first, *rest = sections
    if first == "*":
        for number, item in enumerate(content if isinstance(content, list) else []):
            yield from _sections_at(item, rest, (*place, str(number)))
    elif isinstance(content, dict) and first in content:
        yield from _sections_at(content[first], rest, (*place, first))
