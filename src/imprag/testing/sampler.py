"""What every batch sampler has to do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from imprag.corpus import Corpus, Passage
from imprag.training.data import TrainingExample, TrainingSource
from imprag.training.recipe import BatchSettings, Recipe
from imprag.training.samplers import SAMPLERS, BatchIndices, Sampler, make_sampler

ROWS = 40
STEPS = (0, 1, 2, 7, 50, 400)


def random_sources() -> list[TrainingSource]:
    """Questions with labels of every kind, and texts that retrieve nothing."""
    generator = np.random.default_rng(0)
    questions = []
    for number in range(30):
        positive, known, *hard = generator.permutation(ROWS)[:8].tolist()
        fields = {"positives": (positive,), "known": (known,), "hard_negatives": tuple(hard)}
        answers = (f"f{number % 5}",) if number % 2 else ()
        questions.append(
            TrainingExample(f"q{number}", f"{number}?", f" {number}", answers=answers, **fields)
        )
    texts = [TrainingExample(f"t{number}", "", f"text {number}") for number in range(9)]
    return [TrainingSource("questions", questions, 2.0), TrainingSource("texts", texts)]


class SamplerSuite:
    """Tests of a batch sampler; inherit them and say which sampler is meant.

    Attributes:
        name: that the sampler is registered under.
        settings: of batches, which the tests use.
    """

    name: ClassVar[str]
    settings: ClassVar[Mapping[str, Any]] = {"examples": 6, "candidates": 3, "positives": 2}

    @pytest.fixture
    def corpus(self, tmp_path: Path) -> Corpus:
        """Row n holds the words ``t{n}`` and ``f{n % 5}``."""
        passages = [Passage(f"p{n}", f"title {n}", f"text t{n} f{n % 5}") for n in range(ROWS)]
        return Corpus.build(passages, tmp_path / "corpus")

    def sampler(self, corpus: Corpus, seed: int = 0) -> Sampler:
        """The sampler, as a recipe asks for it."""
        settings = BatchSettings(sampler=self.name, **self.settings)
        return make_sampler(random_sources(), settings, corpus, seed)

    def test_a_recipe_can_choose_it(self) -> None:
        assert self.name in SAMPLERS.names()
        settings = BatchSettings(sampler=self.name, **self.settings)
        recipe = Recipe.model_validate({"data": ({"synthetic": "cloze"},), "batch": settings})
        assert recipe.batch.sampler == self.name

    def test_a_batch_depends_on_seed_and_step_alone(self, corpus: Corpus) -> None:
        one, other = self.sampler(corpus), self.sampler(corpus)
        forward = [one(step) for step in STEPS]
        backward = [other(step) for step in reversed(STEPS)][::-1]
        for batch, again in zip(forward, backward, strict=True):
            assert_equal(batch, again)
        assert_equal(one(STEPS[0]), forward[0])

    def test_another_seed_or_step_gives_other_batches(self, corpus: Corpus) -> None:
        batches = [self.sampler(corpus)(step).examples for step in STEPS]
        assert len(set(batches)) > 1
        assert [self.sampler(corpus, seed=1)(step).examples for step in STEPS] != batches

    def test_examples_are_those_of_the_sources_in_their_order(self, corpus: Corpus) -> None:
        expected = [example for source in random_sources() for example in source.examples]
        assert self.sampler(corpus).examples == expected

    def test_batches_fit_together(self, corpus: Corpus) -> None:
        sampler = self.sampler(corpus)
        for batch in map(sampler, STEPS):
            count, columns = len(batch.examples), len(batch.columns)
            assert count > 0
            assert set(batch.examples) <= set(range(len(sampler.examples)))
            assert len(batch.generated) == len(batch.candidates) == count
            assert batch.passages == batch.columns
            assert len(set(batch.passages)) == columns
            assert set(batch.passages) <= set(range(len(corpus)))
            assert batch.first_column == 0
            assert batch.positive.shape == batch.negative.shape == (count, columns)
            assert batch.cross_batch_negative.shape == (count, len(batch.cross_batch_memory))
            assert not set(batch.cross_batch_memory) & set(batch.passages)
            for number, read in enumerate(batch.candidates):
                assert set(read) <= set(range(columns))
                assert len(set(read)) == len(read)
                assert not read or batch.generated[number], "a prompt reads, but is not generated"

    def test_labels_are_right(self, corpus: Corpus) -> None:
        sampler = self.sampler(corpus)
        for batch in map(sampler, STEPS):
            for number, index in enumerate(batch.examples):
                example = sampler.examples[index]
                rows = np.array(batch.columns, int)
                positive = set(rows[batch.positive[number]].tolist())
                negative = set(rows[batch.negative[number]].tolist())
                assert positive == set(example.positives) & set(batch.columns)
                assert not negative & {*example.positives, *example.known}
                if not example.positives:
                    assert not negative, "a prompt that retrieves nothing has no negatives"
                for row in negative:
                    words = corpus[row].text.split()
                    assert not set(example.answers) & set(words), "a negative has the answer"

    def test_something_can_be_learned(self, corpus: Corpus) -> None:
        batches = [self.sampler(corpus)(step) for step in STEPS]
        assert any((one.positive.any(1) & one.negative.any(1)).any() for one in batches)
        assert any(any(one.generated) for one in batches)

    def test_two_processes_share_a_batch(self, corpus: Corpus) -> None:
        for batch in map(self.sampler(corpus), STEPS):
            shards = [batch.shard(rank, 2) for rank in range(2)]
            dealt = [number for shard in shards for number in shard.examples]
            assert sorted(dealt) == sorted(batch.examples)
            assert sum(shard.positive.sum() for shard in shards) == batch.positive.sum()
            assert sum(shard.negative.sum() for shard in shards) == batch.negative.sum()


def assert_equal(one: BatchIndices, other: BatchIndices) -> None:
    """Compare two batches field by field."""
    for name in BatchIndices.__dataclass_fields__:
        np.testing.assert_equal(getattr(one, name), getattr(other, name))
