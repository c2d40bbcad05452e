"""Retrieval objectives as plug-ins: the contract, and how recipes choose them."""

import pytest
import torch
from test_step import MIXED
from tiny_batches import tiny_imprag_model
from torch import Tensor

from imprag.errors import ImpRAGError
from imprag.testing.objective import ObjectiveSuite
from imprag.training.objectives import (
    OBJECTIVES,
    RetrievalObjective,
    ScoredBatch,
    make_objective,
    mean_over_prompts,
    register_objective,
)
from imprag.training.recipe import Recipe, StageSettings
from imprag.training.step import TrainingModel


class TestNCE(ObjectiveSuite):
    name = "nce"


class TestSelfDistillation(ObjectiveSuite):
    name = "self_distillation"
    settings = {"target_temperature": 0.7, "score_temperature": 1.3}  # noqa: RUF012


class MeanOfOneProcess(RetrievalObjective):
    """Divides by the prompts of this process alone."""

    def __call__(self, scores: Tensor, batch: ScoredBatch) -> Tensor:
        losses = torch.where(batch.positive, -scores, 0).sum(dim=1)[batch.positive.any(1)]
        return losses.sum() / max(len(losses), 1)


class OneProcess(ObjectiveSuite):
    name = "one process"


def test_a_mean_over_one_process_alone_fails_the_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OBJECTIVES, "_registered", {"one process": MeanOfOneProcess})
    OneProcess().test_the_gradient_is_that_of_the_loss()
    with pytest.raises(AssertionError, match="not close"):
        OneProcess().test_two_processes_give_the_loss_and_gradient_of_one()


class Listwise(RetrievalObjective):
    """Every score is pulled to the same mean; a setting scales it."""

    scale: float = 1.0

    def __call__(self, scores: Tensor, batch: ScoredBatch) -> Tensor:
        assert batch.log_likelihood is None
        return self.scale * mean_over_prompts(scores.square().mean(dim=1))


@pytest.fixture
def listwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OBJECTIVES, "_registered", dict(OBJECTIVES._registered))
    register_objective("listwise")(Listwise)


def recipe(**stages: object) -> Recipe:
    return Recipe.model_validate_json(
        Recipe(data=[{"synthetic": "cloze"}], stages=stages).model_dump_json(), strict=True
    )


def test_a_recipe_chooses_the_objective_and_its_settings(listwise: None) -> None:
    chosen = {"name": "listwise", "scale": 3.0}
    given = recipe(warmup={"objective": chosen}, self_distillation={"objective": "nce"})
    assert given.stages.warmup.objective == chosen
    assert given.fingerprint() != recipe(warmup={"objective": "listwise"}).fingerprint()
    model = TrainingModel(tiny_imprag_model(), given.stages)
    output = model(MIXED)
    expected = 3 * output.scores.square().mean()
    torch.testing.assert_close(output.retrieval, expected)
    assert isinstance(model.objectives[True], OBJECTIVES.find("nce"))


def test_by_default_the_objectives_are_the_papers() -> None:
    stages = StageSettings()
    assert stages.warmup.objective == "nce"
    assert stages.self_distillation.objective == "self_distillation"


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("nse", "unknown retrieval objective 'nse'; known are nce, self_distillation .*objectives"),
        ({"scale": 1}, "an objective needs its name, such as nce or {name: nce}"),
        (
            {"name": "self_distillation", "temperature": 1},
            "'self_distillation' cannot have temperature=1 .* its settings are target_temperature,",
        ),
        ({"name": "self_distillation", "score_temperature": 0}, "score_temperature=0 .*than 0"),
        ({"name": "nce", "weight": 1}, "cannot have weight=1 .* its settings are none"),
    ],
)
def test_unknown_objectives_and_settings_are_refused(objective: object, message: str) -> None:
    with pytest.raises(ImpRAGError, match=message):
        make_objective(objective)
    with pytest.raises(ValueError, match=message):
        StageSettings.model_validate({"warmup": {"objective": objective}})
