"""Batch samplers as plug-ins: the contract, and how recipes choose them."""

import random
from pathlib import Path
from typing import ClassVar

import pytest

from imprag.corpus import Corpus, Passage
from imprag.errors import ImpRAGError
from imprag.testing.sampler import SamplerSuite, random_sources
from imprag.training.recipe import BatchSettings, Recipe
from imprag.training.samplers import (
    SAMPLERS,
    BatchIndices,
    Sampler,
    make_sampler,
    register_sampler,
)


class TestMixture(SamplerSuite):
    name = "mixture"


class TestMixtureWithMemory(SamplerSuite):
    name = "mixture"
    settings: ClassVar = {
        "examples": 6,
        "candidates": 3,
        "generate": 2,
        "cross_batch_memory": 2,
        "questions_per_passage": 1,
    }


class Uniform(Sampler):
    """Examples drawn one by one; each reads its positives."""

    def __call__(self, step: int) -> BatchIndices:
        drawing = random.Random(f"{self.seed} {step}")
        numbers = drawing.sample(range(len(self.examples)), self.settings.examples)
        read = [list(self.examples[number].positives) for number in numbers]
        return self.make_batch(numbers, read, drawing.sample(range(len(self.corpus)), 5))


@pytest.fixture(autouse=True)
def _uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SAMPLERS, "_registered", dict(SAMPLERS._registered))
    register_sampler("uniform")(Uniform)


class TestUniform(SamplerSuite):
    name = "uniform"


class Forgetful(Uniform):
    """Remembers which examples it drew."""

    def __call__(self, step: int) -> BatchIndices:
        self.seed += 1
        return super().__call__(step)


class ForgetfulTests(SamplerSuite):
    name = "forgetful"


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return Corpus.build([Passage(f"p{n}", "", f"text {n}") for n in range(40)], tmp_path / "corpus")


def test_a_sampler_that_remembers_fails_the_suite(corpus: Corpus) -> None:
    register_sampler("forgetful")(Forgetful)
    ForgetfulTests().test_batches_fit_together(corpus)
    with pytest.raises(AssertionError):
        ForgetfulTests().test_a_batch_depends_on_seed_and_step_alone(corpus)


def test_a_recipe_chooses_the_sampler() -> None:
    given = Recipe(data=[{"synthetic": "cloze"}], batch={"sampler": "uniform", "examples": 3})
    assert given.batch.sampler == "uniform"
    assert Recipe(data=[{"synthetic": "cloze"}]).batch.sampler == "mixture"


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"sampler": "unform"}, "unknown batch sampler 'unform'; known are mixture, .*uniform .*"),
        ({"sampler": "uniform", "grid": (2, 2)}, "batch.grid has no effect with .* 'uniform'"),
        ({"sampler": "uniform", "cross_batch_memory": 2}, "cross_batch_memory has no effect"),
    ],
)
def test_unknown_samplers_and_settings_without_effect_are_refused(
    batch: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(data=[{"synthetic": "cloze"}], batch=batch)


def test_a_sampler_without_mining_says_so(corpus: Corpus) -> None:
    sampler = make_sampler(random_sources(), BatchSettings(sampler="uniform"), corpus)
    with pytest.raises(ImpRAGError, match="'uniform' takes no candidates .* stages.mine_every"):
        sampler.reading([0])
