"""Which examples and passages make a batch: a pure function of seed and step.

No state is kept between batches. So a run that is resumed, with any number of processes or
workers, continues with the batches that it would have had.
"""

import copy
import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from imprag.corpus import Corpus
from imprag.errors import ImpRAGError
from imprag.training.data import TrainingExample, TrainingSource
from imprag.training.recipe import BatchSettings
from imprag.training.samplers.base import BatchIndices, Sampler
from imprag.training.samplers.sampling import (
    Epochs,
    Mixture,
    QuestionsAbout,
    grid_epochs,
    random_groups,
    sample,
    single_epochs,
)


class _Prompts(NamedTuple):
    """The prompts of a batch that bring candidates of their own.

    Attributes:
        indices: numbers of the examples.
        positives: corpus rows of each prompt's positives.
        generated: places of the prompts whose responses are generated.
    """

    indices: list[int]
    positives: list[list[int]]
    generated: set[int]


class BatchSampler(Sampler):
    """All batches of a training: ``sampler(step)`` is the batch of a step.

    Without ``grid``, a batch is sampled from all sources by their weights. With it, a batch has
    ``grids`` grids, sampled by weight from the sources whose examples have a place in grids, and
    ``others`` prompts, sampled by weight from the other sources. A grid crosses entities and
    relations, with one example of each cell that has any; a grid of a source of articles has some
    questions about each of some articles. Small grids share a batch.

    In every epoch of a source, each example, or each cell of its grids, comes once;
    ``questions_per_passage`` adds to these.

    Args:
        sources: the mixture.
        settings: of batches.
        corpus: that the rows belong to.
        seed: seed of the random choices.

    Attributes:
        examples: of all sources, in order; batches name them by their number.

    Raises:
        ImpRAGError: a source is empty, no source is fit for grids or some would never be drawn, or
            the corpus has fewer passages than a prompt reads.
    """

    uses = frozenset(BatchSettings.model_fields)

    def __init__(
        self,
        sources: Sequence[TrainingSource],
        settings: BatchSettings,
        corpus: Corpus,
        seed: int = 0,
    ) -> None:
        super().__init__(sources, settings, corpus, seed)
        _check(sources, settings, corpus)
        self._epochs: list[Epochs] = []
        self._ranks: dict[int, list[int]] | None = None
        self._batch = lru_cache(maxsize=settings.cross_batch_memory + 1)(
            self._without_cross_batch_memory
        )
        first = 0
        numbers: list[range] = []
        grids, singles = {}, {}
        for number, source in enumerate(sources):
            key = f"{seed} {number} {source.name}"
            indices = range(first, first := first + len(source.examples))
            numbers.append(indices)
            if settings.grid and _has_grid(source):
                grids[number] = source.weight
                generator = random.Random(key)
                grid, group = settings.grid, self.group_entities
                maker = grid_epochs(self.examples, indices, grid, generator, group)
            else:
                singles[number] = source.weight
                maker = single_epochs(indices)
            self._epochs.append(Epochs(maker, key))
        self._grid_mixture = Mixture(grids, f"{seed} grids")
        self._mixture = Mixture(singles, f"{seed} examples")
        asks_more = settings.questions_per_passage > 0
        self._questions = QuestionsAbout(numbers if asks_more else [], self.examples)

    def group_entities(
        self, entities: Sequence[str], size: int, generator: random.Random
    ) -> list[Sequence[str]]:
        """The entities of each grid, at most ``size``, for an epoch; a subclass may choose them."""
        return random_groups(entities, size, generator)

    def __call__(self, step: int) -> BatchIndices:
        """The batch of a step, counted from 0."""
        batch = self._batch(step)
        earlier = [
            self._batch(n) for n in range(max(0, step - self.settings.cross_batch_memory), step)
        ]
        rows = dict.fromkeys(row for one in earlier for row in one.passages)
        memory = tuple(row for row in rows if row not in batch.passages)
        _, negative = self._masks([self.examples[n] for n in batch.examples], memory)
        return replace(batch, cross_batch_memory=memory, cross_batch_negative=negative)

    def reading(self, steps: Iterable[int]) -> list[int]:
        """Numbers of the examples that read candidates of their own in the batches of these steps.

        The batches in the cross-batch memory at these steps are among them.
        """
        kept = {
            n
            for step in steps
            for n in range(max(0, step - self.settings.cross_batch_memory), step + 1)
        }
        batches = (self._prompts(step, self._generator(step)) for step in sorted(kept))
        return sorted({batch.indices[n] for batch in batches for n in batch.generated})

    def reranked(self, numbers: Sequence[int], rows: npt.NDArray[np.integer]) -> "BatchSampler":
        """The same sampler with candidates from the model's own index.

        Args:
            numbers: of examples, such as `reading` names.
            rows: of the corpus, best first, for each of them: (examples, depth).
        """
        sampler = copy.copy(self)
        sampler._ranks = dict(zip(numbers, rows.tolist(), strict=True))
        sampler._batch = lru_cache(maxsize=self.settings.cross_batch_memory + 1)(
            sampler._without_cross_batch_memory
        )
        return sampler

    def _without_cross_batch_memory(self, step: int) -> BatchIndices:
        generator = self._generator(step)
        indices, positives, generated = self._prompts(step, generator)
        examples = [self.examples[index] for index in indices]
        if self._ranks is None:
            negatives = [self._hard_negatives(one, generator) for one in examples]
        else:  # what it would read now
            ranks = [self._ranks[i] if n in generated else [] for n, i in enumerate(indices)]
            negatives = [
                [row for row in rows if row not in positives[n]][: self.settings.candidates]
                for n, rows in enumerate(ranks)
            ]
        passages = list(dict.fromkeys(itertools.chain(*positives, *negatives)))
        # Prompts read each other's positives first, so that few passages run through the
        # reading layers, and each for several prompts.
        later = {n: one.later for n, one in enumerate(examples) if one.later}
        found_later = [row for hops in later.values() for rows in hops for row in rows]
        passages = list(dict.fromkeys([*passages, *found_later]))
        read_anyway = list(dict.fromkeys(row for n in sorted(generated) for row in positives[n]))
        read = [
            self._candidates(one, positives[n], negatives[n], (read_anyway, passages), generator)
            if n in generated
            else []
            for n, one in enumerate(examples)
        ]
        brought = {
            n: [
                self._candidates(examples[n], rows, (), (read_anyway, passages), generator)
                for rows in hops
            ]
            for n, hops in later.items()
            if n in generated
        }
        for index, rows in self._extra_questions(indices, read, generator):
            indices.append(index)
            read.append(rows)
        return self.make_batch(indices, read, passages, brought)

    def _generator(self, step: int) -> random.Random:
        return random.Random(f"{self.seed} batch {step}")

    def _prompts(self, step: int, generator: random.Random) -> _Prompts:
        """The prompts of a batch, before its extra questions."""
        indices = self._drawn(step)
        examples = [self.examples[index] for index in indices]
        positives = [sample(one.positives, self.settings.positives, generator) for one in examples]
        answered = [n for n, one in enumerate(examples) if one.positives and one.response]
        generated = set(answered)
        if self.settings.generate is not None:
            # Neighbours in the grid: what they read of each other is hard to tell apart.
            count = min(self.settings.generate, len(answered))
            first = generator.randint(0, len(answered) - count)
            generated = set(answered[first : first + count])
        return _Prompts(indices, positives, generated)

    def _extra_questions(
        self, indices: Sequence[int], read: Sequence[list[int]], generator: random.Random
    ) -> list[tuple[int, list[int]]]:
        """Examples about passages that other prompts read, which read the same, with these rows."""
        found: list[tuple[int, list[int]]] = []
        if count := self.settings.questions_per_passage:
            for number, rows in zip(indices, read, strict=True):
                for row in rows:
                    asked = [*indices, *(index for index, _ in found)]
                    for index in self._questions.draw(number, row, asked, count, generator):
                        asked_again = self.examples[index].later
                        if set(self.examples[index].positives) <= set(rows) and not asked_again:
                            found.append((index, rows))
        return found

    def _drawn(self, step: int) -> list[int]:
        """The examples of a batch."""
        counts = [(self._mixture, self.settings.examples)]
        if self.settings.grid:
            counts = [
                (self._grid_mixture, self.settings.grids),
                (self._mixture, self.settings.others),
            ]
        indices: list[int] = []
        for mixture, count in counts:
            for draw in range(step * count, (step + 1) * count):
                source, position = mixture.draw(draw)
                indices += self._epochs[source].bundle(position)
        return indices

    def _hard_negatives(self, example: TrainingExample, generator: random.Random) -> list[int]:
        """Drawn from the example's pool."""
        found: list[int] = []
        for row in sample(example.hard_negatives, len(example.hard_negatives), generator):
            if len(found) == self.settings.hard_negatives:
                break
            if not self._may_answer(example, row):
                found.append(row)
        return found

    def _candidates(
        self,
        example: TrainingExample,
        positives: Sequence[int],
        negatives: Sequence[int],
        others: Sequence[Sequence[int]],
        generator: random.Random,
    ) -> list[int]:
        """The corpus rows that a prompt reads, shuffled.

        Up to half are positives, as one passage is not enough for two-hop questions. The rest are
        its hard negatives, then drawn from each of ``others`` in turn, then from the corpus.
        """
        count = self.settings.candidates
        chosen = [*positives[: -(-count // 2)]]
        taken = {*chosen, *example.positives}
        chosen += negatives[: count - len(chosen)]
        taken.update(chosen)
        for rows in others:
            rest = [row for row in rows if row not in taken]
            drawn = sample(rest, count - len(chosen), generator)
            chosen += drawn
            taken.update(drawn)
        if len(chosen) < count:
            size = min(len(self.corpus), count + len(example.positives))
            drawn = generator.sample(range(len(self.corpus)), size)
            drawn = [row for row in drawn if row not in chosen]
            drawn.sort(key=lambda row: row in example.positives)
            chosen += drawn[: count - len(chosen)]
        generator.shuffle(chosen)
        return chosen


def _has_grid(source: TrainingSource) -> bool:
    return all(example.group and example.positives for example in source.examples)


def _check(sources: Sequence[TrainingSource], settings: BatchSettings, corpus: Corpus) -> None:
    if settings.candidates > len(corpus):
        raise ImpRAGError(
            f"a prompt reads {settings.candidates} candidates, but the corpus has only "
            f"{len(corpus)} passages"
        )
    if settings.grid is None:
        return
    single = [source.name for source in sources if not _has_grid(source)]
    if len(single) == len(sources):
        raise ImpRAGError(
            "no source is fit for grids, which need positives and passages with titles; leave out "
            "batch.grid"
        )
    if bool(single) != bool(settings.others):
        raise ImpRAGError(
            f"batch.others is {settings.others}, but "
            + (f"{', '.join(single)} would never be drawn" if single else "all sources are grids")
        )
