"""The contract of retrieval objectives, their registry, and what all losses share.

All losses are means, over prompts or tokens. ``count`` replaces what the sum is divided by, so that
the mean can be taken over everything that several processes or accumulated batches hold: see
:func:`imprag.training.distributed.mean_over_processes`. A mean over nothing is 0, and so is its
gradient.

Half-precision input is computed in float32, under autocast too; float64 stays float64.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import AfterValidator, ValidationError
from torch import Tensor

from imprag.errors import ImpRAGError
from imprag.io.registry import Registry
from imprag.training.distributed import mean_over_processes
from imprag.training.sources import Section

Count = Tensor | float | None


@dataclass(frozen=True, eq=False)
class ScoredBatch:
    """What an objective knows of a batch of Q prompts and C passages, apart from their scores.

    The passages are those of all processes, then those of the cross-batch memory, if there is one.

    Attributes:
        positive: (Q, C) bool, the passages to find.
        negative: (Q, C) bool, the others that are known not to be positives. A passage may be
            neither.
        candidates: (Q, C) bool, the passages that each prompt reads; none for a prompt whose
            response is not generated.
        log_likelihood: (Q, C) log P_LM(r | p, q) of the candidates, each read alone, without
            gradient; None unless the objective asks for it.
    """

    positive: Tensor
    negative: Tensor
    candidates: Tensor
    log_likelihood: Tensor | None = None


class RetrievalObjective(Section, ABC):
    """J_ret of a batch: what the scores of prompts and passages should be like.

    A subclass declares its settings as fields, which recipes give, and computes the loss in
    ``__call__``.

    Attributes:
        needs_log_likelihood: whether the language model has to read each candidate alone, which
            takes another forward pass of the layers above b for each of them.
    """

    needs_log_likelihood: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, scores: Tensor, batch: ScoredBatch) -> Tensor:
        """The mean loss over the prompts of all processes that count, () float32.

        Args:
            scores: (Q, C) s(q, p), with gradient, of this process's prompts.
            batch: what else is known of them.
        """


OBJECTIVES: Registry[type[RetrievalObjective]] = Registry(
    "retrieval objective",
    "imprag.objectives",
    {
        "nce": "imprag.training.objectives.contrastive:NCE",
        "self_distillation": "imprag.training.objectives.distillation:SelfDistillation",
    },
)
"""Retrieval objectives by name."""

#: Decorator: makes a retrieval objective known under a name.
register_objective = OBJECTIVES.register


def make_objective(given: str | Mapping[str, Any]) -> RetrievalObjective:
    """The objective that a recipe asks for.

    Args:
        given: its name, or its ``name`` with its settings.

    Raises:
        ImpRAGError: there is no such objective, or a setting is unknown or wrong.
    """
    settings = {"name": given} if isinstance(given, str) else dict(given)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise ImpRAGError("an objective needs its name, such as nce or {name: nce}")
    objective = OBJECTIVES.find(name)
    try:
        return objective.model_validate_json(json.dumps(settings, default=str), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key, known = ".".join(map(str, first["loc"])), ", ".join(objective.model_fields) or "none"
        raise ImpRAGError(
            f"the objective '{name}' cannot have {key}={first['input']!r:.60} ({first['msg']}); "
            f"its settings are {known}"
        ) from error


def _checked(given: str | dict[str, Any]) -> str | dict[str, Any]:
    make_objective(given)
    return given


ObjectiveSettings = Annotated[str | dict[str, Any], AfterValidator(_checked)]
"""What recipes hold of an objective: its name, or its ``name`` with its settings."""


def mean_over_prompts(losses: Tensor) -> Tensor:
    """The mean of the losses of all processes' prompts that count; 0 if none counts.

    Args:
        losses: of this process's prompts that count, (n,).
    """
    count = torch.tensor(len(losses), device=losses.device)
    return mean(losses.sum(), count, mean_over_processes(count))


def relevance_scores(query_embeddings: Tensor, passage_embeddings: Tensor) -> Tensor:
    """Scores s(q, p) of all passages for all prompts: inner products, in float32.

    Args:
        query_embeddings: (Q, dim), the score scale included.
        passage_embeddings: (P, dim).

    Returns:
        (Q, P) float32.
    """
    # Autocast would multiply in bfloat16, whose three digits do not tell close passages apart.
    with torch.autocast(query_embeddings.device.type, enabled=False):
        return precise(query_embeddings) @ precise(passage_embeddings).T


def precise(tensor: Tensor) -> Tensor:
    """In float32; float64 stays as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def mean(total: Tensor, own: Tensor, count: Count) -> Tensor:
    """``total / count``; 0 for an empty sum.

    Args:
        total: the sum.
        own: the number of its terms, which divides if ``count`` is None.
        count: another divisor, such as a mean over processes.
    """
    divisor = own if count is None else count
    return total / (divisor + (divisor == 0))  # nothing divided by nothing is nothing
