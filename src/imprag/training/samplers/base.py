"""The contract of batch samplers, their registry, and what a batch is.

A sampler says which examples and passages make a batch, as a pure function of seed and step. So a
run that is resumed continues with the batches that it would have had, with any number of processes
or workers.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from imprag.corpus import Corpus
from imprag.errors import ImpRAGError
from imprag.io.registry import Registry
from imprag.tasks.matching import AnswerFinder, contains_answer

if TYPE_CHECKING:  # recipes hold the name of a sampler, so their schema imports this module
    from imprag.training.data import TrainingExample, TrainingSource
    from imprag.training.recipe import BatchSettings


class LaterIndices(NamedTuple):
    """A later retrieval of a prompt's response.

    Attributes:
        prompt: the prompt's number in the batch.
        candidates: the passages that it brings, as indices into ``passages``; () if the response is
            not generated.
    """

    prompt: int
    candidates: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class BatchIndices:
    """A batch by numbers only, for Q prompts and P passages.

    Responses may retrieve again, H times in all. These queries have rows of their own in the
    masks, after those of the prompts.

    Attributes:
        examples: numbers in `Sampler.examples`, Q.
        generated: whether the response is generated, Q; else the prompt only retrieves.
        passages: corpus rows to embed, P, distinct.
        candidates: the passages that each prompt reads, as indices into ``passages``, Q; () for a
            prompt that is not generated or does not retrieve.
        positive: (Q + H, C) bool, which passages are positives. C is P, or, in a shard, the number
            of passages of all shards in the order of their ranks.
        negative: (Q + H, C) bool, which are negatives; a passage may be neither.
        columns: corpus rows of the C columns.
        cross_batch_memory: corpus rows of passages that earlier batches had and this one has not,
            M.
        cross_batch_negative: (Q + H, M) bool, which of them are negatives.
        first_column: where ``passages`` begin among the C columns.
        later: the later retrievals, H; those of a prompt in the order of its response.
    """

    examples: tuple[int, ...]
    generated: tuple[bool, ...]
    passages: tuple[int, ...]
    candidates: tuple[tuple[int, ...], ...]
    positive: npt.NDArray[np.bool_]
    negative: npt.NDArray[np.bool_]
    columns: tuple[int, ...]
    cross_batch_memory: tuple[int, ...]
    cross_batch_negative: npt.NDArray[np.bool_]
    first_column: int = 0
    later: tuple[LaterIndices, ...] = ()

    def shard(self, rank: int, world_size: int) -> "BatchIndices":
        """The part of one process, computed without communication.

        Every prompt is in one shard, and so is every column that counts in the masks. A passage
        that prompts of several shards read is in each of them, because its keys and values are
        needed there; the column of a copy is neither a
        positive nor a negative.
        """
        # Prompts that cost alike are dealt out evenly.
        order = sorted(
            range(len(self.examples)),
            key=lambda n: (not self.generated[n], not self.candidates[n]),
        )
        prompts = [sorted(order[each::world_size]) for each in range(world_size)]
        passages = self._deal_passages(prompts)
        columns = [column for part in passages for column in part]
        first = sum(map(len, passages[:rank]))
        own, mine = prompts[rank], passages[rank]
        later = [n for n, one in enumerate(self.later) if one.prompt in own]
        rows = [*own, *(len(self.examples) + n for n in later)]
        place = {passage: index for index, passage in enumerate(mine)}
        copies = copied_columns(columns)

        def part(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
            chosen = mask[np.ix_(rows, columns)]
            chosen[:, copies] = False
            return chosen

        return BatchIndices(
            examples=tuple(self.examples[n] for n in own),
            generated=tuple(self.generated[n] for n in own),
            passages=tuple(self.passages[n] for n in mine),
            candidates=tuple(tuple(place[c] for c in self.candidates[n]) for n in own),
            positive=part(self.positive),
            negative=part(self.negative),
            columns=tuple(self.passages[n] for n in columns),
            cross_batch_memory=self.cross_batch_memory,
            cross_batch_negative=self.cross_batch_negative[rows],
            first_column=first,
            later=tuple(
                LaterIndices(own.index(one.prompt), tuple(place[c] for c in one.candidates))
                for one in (self.later[n] for n in later)
            ),
        )

    def _deal_passages(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Each process's passages: those that its prompts read, and a share of the others."""
        read = [set(candidates) for candidates in self.candidates]
        for one in self.later:
            read[one.prompt].update(one.candidates)
        parts = [sorted({c for n in own for c in read[n]}) for own in prompts]
        dealt = {passage for part in parts for passage in part}
        for passage in range(len(self.passages)):
            if passage not in dealt:
                min(parts, key=len).append(passage)
        return parts


def copied_columns(columns: Sequence[int]) -> list[bool]:
    """For every column whether an earlier one holds the same passage, and it must not count."""
    firsts = {column: n for n, column in reversed(list(enumerate(columns)))}
    return [firsts[column] != n for n, column in enumerate(columns)]


class Sampler(ABC):
    """All batches of a training: ``sampler(step)`` is the batch of a step.

    Args:
        sources: the mixture, in the recipe's order.
        settings: of batches.
        corpus: that the rows belong to.
        seed: of the random choices.

    Attributes:
        examples: of all sources, in order; batches name them by their number.
        uses: the settings that have an effect; others are refused where a recipe changes them.

    Raises:
        ImpRAGError: the sampler can make no batches of this.
    """

    uses: ClassVar[frozenset[str]] = frozenset(
        {"sampler", "examples", "positives", "hard_negatives", "candidates", "passage_tokens"}
    )

    def __init__(
        self,
        sources: "Sequence[TrainingSource]",
        settings: "BatchSettings",
        corpus: Corpus,
        seed: int = 0,
    ) -> None:
        if empty := [source.name for source in sources if not source.examples]:
            raise ImpRAGError(f"the source '{empty[0]}' has no examples")
        self.settings = settings
        self.corpus = corpus
        self.seed = seed
        self.examples: list[TrainingExample] = [one for each in sources for one in each.examples]
        self._text = lru_cache(maxsize=2**14)(lambda row: corpus[row].text)

    @abstractmethod
    def __call__(self, step: int) -> BatchIndices:
        """The batch of a step, counted from 0: the same whenever it is asked for."""

    def reading(self, steps: Iterable[int]) -> list[int]:
        """Numbers of the examples that read candidates of their own in the batches of these steps.

        Raises:
            ImpRAGError: the sampler takes no candidates from the model's own index.
        """
        raise self._no_mining()

    def reranked(self, numbers: Sequence[int], rows: npt.NDArray[np.integer]) -> Self:
        """The same sampler with candidates from the model's own index.

        Args:
            numbers: of examples, such as `reading` names.
            rows: of the corpus, best first, for each of them: (examples, depth).

        Raises:
            ImpRAGError: the sampler takes no candidates from the model's own index.
        """
        raise self._no_mining()

    def make_batch(
        self,
        numbers: Sequence[int],
        read: Sequence[Sequence[int]],
        passages: Iterable[int] = (),
        later: Mapping[int, Sequence[Sequence[int]]] | None = None,
    ) -> BatchIndices:
        """A batch of these examples, with labels.

        A prompt is generated if it reads passages or retrieves none. One without a response only
        retrieves.

        Args:
            numbers: of the examples.
            read: corpus rows that each of them reads; none for one that only retrieves. Those of an
                example without a response are left out.
            passages: corpus rows that are embedded, too, such as positives and hard negatives.
            later: corpus rows that later retrievals bring, by the place of their example in
                ``numbers``. By default each brings its positives. Examples that only retrieve read
                none.
        """
        examples = [self.examples[number] for number in numbers]
        read = [rows if one.response else () for one, rows in zip(examples, read, strict=True)]
        brought = [
            (n, tuple(rows) if read[n] else ())
            for n, one in enumerate(examples)
            for rows in (later or {}).get(n, one.later)
        ]
        found_later = (rows for one in examples for rows in one.later)
        wanted = [*read, *(each for _, each in brought), *found_later]
        rows = tuple(dict.fromkeys([*passages, *(row for each in wanted for row in each)]))
        place = {row: index for index, row in enumerate(rows)}
        positive, negative = self._masks(examples, rows)
        return BatchIndices(
            examples=tuple(numbers),
            generated=tuple(
                bool(each) or not one.positives for one, each in zip(examples, read, strict=True)
            ),
            passages=rows,
            candidates=tuple(tuple(place[row] for row in each) for each in read),
            positive=positive,
            negative=negative,
            columns=rows,
            cross_batch_memory=(),
            cross_batch_negative=np.zeros((len(positive), 0), np.bool_),
            later=tuple(LaterIndices(n, tuple(place[row] for row in each)) for n, each in brought),
        )

    def _no_mining(self) -> ImpRAGError:
        return ImpRAGError(
            f"the batch sampler '{self.settings.sampler}' takes no candidates from the model's own "
            "index; leave out stages.mine_every"
        )

    def _masks(
        self, examples: "Sequence[TrainingExample]", passages: Sequence[int]
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Each query's positives and negatives among the passages: the prompts', then later ones'.

        What the prompt's own query should find is a negative of later ones: it has been read.
        """
        later = [
            replace(example, positives=rows, known=())
            for example in examples
            for rows in example.later
        ]
        examples = [*examples, *later]
        positive = np.zeros((len(examples), len(passages)), np.bool_)
        negative = np.zeros_like(positive)
        place = {row: column for column, row in enumerate(passages)}
        finder = AnswerFinder([self._text(row) for row in passages])
        for n, example in enumerate(examples):
            if example.positives:
                found = [place[row] for row in example.positives if row in place]
                unsure = {place[row] for row in example.known if row in place}
                unsure |= finder.texts_with(example.answers)
                positive[n, found] = True
                negative[n] = True
                negative[n, [*found, *unsure]] = False
        return positive, negative

    def _may_answer(self, example: "TrainingExample", row: int) -> bool:
        """Whether the passage holds an answer, so that it may not be a negative."""
        return contains_answer(self._text(row), example.answers)


SAMPLERS: Registry[type[Sampler]] = Registry(
    "batch sampler",
    "imprag.samplers",
    {"mixture": "imprag.training.samplers.batch_sampler:BatchSampler"},
)
"""Batch samplers by name."""

#: Decorator: makes a batch sampler known under a name.
register_sampler = SAMPLERS.register


def check_sampler(settings: "BatchSettings") -> None:
    """Refuse settings of batches that their sampler does not use.

    Raises:
        ImpRAGError: there is no such sampler, or a setting has no effect.
    """
    uses = SAMPLERS.find(settings.sampler).uses
    for name, field in type(settings).model_fields.items():
        if name not in uses and getattr(settings, name) != field.default:
            raise ImpRAGError(
                f"batch.{name} has no effect with the batch sampler '{settings.sampler}'; leave it "
                "out"
            )


def make_sampler(
    sources: "Sequence[TrainingSource]",
    settings: "BatchSettings",
    corpus: Corpus,
    seed: int = 0,
) -> Sampler:
    """The sampler that the settings name.

    Args:
        sources, settings, corpus, seed: as for `Sampler`.

    Raises:
        ImpRAGError: the sampler is unknown or can make no batches of this.
    """
    return SAMPLERS.find(settings.sampler)(sources, settings, corpus, seed)
