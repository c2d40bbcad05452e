"""Batches of random tokens and a tiny model for them."""

import torch

from conftest import tiny_lm
from imprag.model import ImpRAGConfig, ImpRAGModel
from imprag.training.recipe import (
    SelfDistillationStage,
    StageSettings,
    WarmupStage,
)
from imprag.training.step import TrainingBatch, TrainingModel

B, T, LAYERS = 1, 3, 6
LONGEST = 16

STAGES = StageSettings(
    warmup=WarmupStage(fraction=0.5),
    self_distillation=SelfDistillationStage(
        objective={"name": "self_distillation", "target_temperature": 0.7, "score_temperature": 1.3}
    ),
    retrieval_weight=0.6,
)


def tiny_imprag_model() -> ImpRAGModel:
    """A model of six layers: 0..1 retrieve, 1..3 read."""
    config = ImpRAGConfig(base_model="tiny", b=B, t=T, k=3, max_passage_tokens=LONGEST)
    return ImpRAGModel(tiny_lm(layers=LAYERS), config)


def tiny_model(batch_tokens: int | None = None, stages: StageSettings = STAGES) -> TrainingModel:
    """A `TrainingModel` with the same weights at each call."""
    return TrainingModel(tiny_imprag_model(), stages, batch_tokens)


def random_batch(
    responses: list[int],
    candidates: list[list[int]],
    passages: int,
    *,
    seed: int = 0,
    **settings: object,
) -> TrainingBatch:
    """A batch of random lengths, tokens and labels.

    Args:
        responses: number of tokens of each prompt's response.
        candidates: the passages that each prompt reads.
        passages: number of passages.
        seed: seed of all random values.
        **settings: fields that replace random values.
    """
    generator = torch.Generator().manual_seed(seed)

    def tokens(length: int) -> list[int]:
        return torch.randint(3, 97, (length,), generator=generator).tolist()

    def lengths(count: int) -> list[int]:
        return torch.randint(2, LONGEST + 1, (count,), generator=generator).tolist()

    count = len(responses)
    labels = torch.randint(4, (count, passages), generator=generator)
    values = {
        "ids": [str(n) for n in range(count)],
        "prompts": [tokens(n) for n in lengths(count)],
        "responses": [tokens(n) for n in responses],
        "passages": [tokens(n) for n in lengths(passages)],
        "candidates": candidates,
        "positive": labels == 0,
        "negative": labels > 1,
    }
    return TrainingBatch(**{**values, **settings})
