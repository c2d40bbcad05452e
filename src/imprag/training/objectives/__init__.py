"""The losses of training; docs/concepts/objectives.md works each out by hand.

`register_objective` makes a retrieval objective known under a name, which recipes choose as
``stages.warmup.objective`` and ``stages.self_distillation.objective``; packages offer theirs under
the entry-point group ``imprag.objectives``.
"""

from imprag.training.objectives.base import (
    OBJECTIVES,
    ObjectiveSettings,
    RetrievalObjective,
    ScoredBatch,
    make_objective,
    mean_over_prompts,
    register_objective,
    relevance_scores,
)
from imprag.training.objectives.contrastive import contrastive_prompts, nce_against_all, nce_loss
from imprag.training.objectives.distillation import distillation_prompts, self_distillation_loss
from imprag.training.objectives.generation import (
    IGNORED,
    generation_loss,
    response_log_likelihood,
)

__all__ = [
    "IGNORED",
    "OBJECTIVES",
    "ObjectiveSettings",
    "RetrievalObjective",
    "ScoredBatch",
    "contrastive_prompts",
    "distillation_prompts",
    "generation_loss",
    "make_objective",
    "mean_over_prompts",
    "nce_against_all",
    "nce_loss",
    "register_objective",
    "relevance_scores",
    "response_log_likelihood",
    "self_distillation_loss",
]
