"""The batches of a run as token ids."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from imprag.corpus import Corpus
from imprag.errors import ImpRAGError
from imprag.model.text import (
    in_context_prompt,
    passage_tokens,
    prompt_tokens,
    response_tokens,
)
from imprag.training.data import TrainingExample
from imprag.training.hard_negatives import HardNegativeMiner
from imprag.training.recipe import LONGEST_TEXT, Recipe
from imprag.training.samplers import BatchIndices, LaterIndices, Sampler
from imprag.training.schedule import Schedule
from imprag.training.step import LaterQuery, TrainingBatch


class Batches(Dataset[TrainingBatch]):
    """All batches of a run in order; each is tokenized on access.

    A baseline's prompts have their candidates in the context, and nothing is left to retrieve.

    Args:
        sampler: samples the examples and passages of each batch.
        schedule: gives the stage and the passage length of each step.
        corpus: the passages.
        tokenizer: the model's tokenizer.
        recipe: gives the model's settings and the number of batches per optimizer step.
        rank, world_size: this process among all.
        miner: mines hard negatives, if the recipe sets `stages.mine_every`.
    """

    def __init__(
        self,
        sampler: Sampler,
        schedule: Schedule,
        corpus: Corpus,
        tokenizer: Any,
        recipe: Recipe,
        rank: int = 0,
        world_size: int = 1,
        miner: HardNegativeMiner | None = None,
    ) -> None:
        self.sampler = sampler
        self.schedule = schedule
        self._corpus = corpus
        self._tokenizer = tokenizer
        self._config = recipe.model.to_config()
        self._asks = self._config.schedule()
        self._per_step = recipe.accumulation
        self._in_context = recipe.system != "imprag"
        self._rank, self._world_size = rank, world_size
        self._miner = miner
        self._mined = lru_cache(maxsize=1)(self._mined_sampler)
        self._passage = lru_cache(maxsize=2**15)(self._passage_tokens)

    def __len__(self) -> int:
        return self.schedule.steps * self._per_step

    def indices(self, index: int) -> BatchIndices:
        """This process's part of a batch, by numbers."""
        step = index // self._per_step
        mined = self.schedule.last_mined(step)
        sampler = self.sampler if mined is None else self._mined(mined)
        indices = sampler(index).shard(self._rank, self._world_size)
        if not self.schedule.generates(step):
            indices = _retrieval_only(indices)
        return indices

    def __getitem__(self, index: int) -> TrainingBatch:
        step = index // self._per_step
        indices = self.indices(index)
        rows = indices.passages
        contexts: list[tuple[int, ...]] = [()] * len(indices.examples)
        if self._in_context:
            indices = chosen(indices, indices.generated)
            contexts = [tuple(rows[c] for c in candidates) for candidates in indices.candidates]
            indices = _without_passages(indices)
        examples = [self.sampler.examples[i] for i in indices.examples]
        prompts, responses = [], []
        later: list[LaterQuery] = []
        zipped = zip(examples, indices.generated, contexts, strict=True)
        for n, (example, generated, context) in enumerate(zipped):
            response = self.response(example) if generated else []
            later += self._later(n, example, indices)
            if example.prompt:
                prompt = self._prompt(example.prompt, context)
            else:  # plain text: its first token is the prompt
                prompt, response = response[:1], response[1:]
            prompts.append(prompt)
            responses.append(response[:LONGEST_TEXT])
        return TrainingBatch(
            ids=[example.id for example in examples],
            prompts=prompts,
            responses=responses,
            passages=self._passages(indices, step),
            candidates=indices.candidates,
            positive=torch.from_numpy(indices.positive),
            negative=torch.from_numpy(indices.negative),
            first_column=indices.first_column,
            columns=indices.columns,
            cross_batch_memory=indices.cross_batch_memory,
            cross_batch_negative=torch.from_numpy(indices.cross_batch_negative),
            self_distillation=self.schedule.stage(step) == "self_distillation",
            later=later,
        )

    def _later(
        self, number: int, example: TrainingExample, indices: BatchIndices
    ) -> list[LaterQuery]:
        """The later queries of an example's response, at the tokens that ask at inference, too.

        Raises:
            ImpRAGError: the response has fewer such tokens.
        """
        brought = [one.candidates for one in indices.later if one.prompt == number]
        if not brought:
            return []
        tokens = self.response(example)[:LONGEST_TEXT]
        decode = partial(self._tokenizer.decode, skip_special_tokens=True)
        asking = (n for n in range(1, len(tokens)) if self._asks.due(tokens[:n], decode))
        ends = list(islice(asking, len(brought)))
        if len(ends) < len(brought):
            raise ImpRAGError(
                f"the response of example '{example.id}' retrieves {len(ends)} times by "
                f"model.retrieve, not {len(brought)} times: {example.response!r:.80}"
            )
        return [
            LaterQuery(number, tokens[:end], candidates)
            for end, candidates in zip(ends, brought, strict=True)
        ]

    def response(self, example: TrainingExample) -> list[int]:
        """Token ids of an example's response."""
        return response_tokens(self._tokenizer, example.response)

    def in_context(self, prompt: str, rows: Sequence[int]) -> list[int]:
        """Token ids of a prompt with passages of the corpus before it, as in-context RAG reads."""
        text = in_context_prompt(
            self._tokenizer, self._config, self._corpus.passages(list(rows)), prompt
        )
        # Text that was cut by tokens may have a few more when it is encoded again.
        limit = LONGEST_TEXT + 2 * len(rows) * self._config.max_passage_tokens
        return prompt_tokens(self._tokenizer, [text], limit)[0]

    def _passages(self, indices: BatchIndices, step: int) -> list[Sequence[int]]:
        """Token ids of a batch's passages.

        The length curriculum spares passages that are read: their answer may be at the end.
        """
        found = [*indices.candidates, *(one.candidates for one in indices.later)]
        read = {passage for passages in found for passage in passages}
        short, full = self.schedule.passage_tokens(step), self._config.max_passage_tokens
        return [
            self._passage(row, full if number in read else short)
            for number, row in enumerate(indices.passages)
        ]

    def _prompt(self, prompt: str, context: Sequence[int]) -> list[int]:
        if context:
            return self.in_context(prompt, context)
        return prompt_tokens(self._tokenizer, [prompt], LONGEST_TEXT)[0]

    def _mined_sampler(self, mined: int) -> Sampler:
        """The sampler with the candidates that are mined at a step, for all steps that use them."""
        assert self._miner is not None
        steps = range(mined, self.schedule.steps)
        batches = [
            step * self._per_step + n
            for step in steps
            if self.schedule.last_mined(step) == mined
            for n in range(self._per_step)
        ]
        numbers = self.sampler.reading(batches)
        prompts = [self.sampler.examples[n].prompt for n in numbers]
        depth = self.sampler.settings.candidates + self.sampler.settings.positives
        return self.sampler.reranked(numbers, self._miner(prompts, depth, mined))

    def _passage_tokens(self, row: int, limit: int) -> Sequence[int]:
        config = replace(self._config, max_passage_tokens=limit)
        (tokens,) = passage_tokens(self._tokenizer, config, [self._corpus[row]])
        return tokens


def chosen(batch: BatchIndices, kept: Sequence[bool]) -> BatchIndices:
    """The batch with some of its prompts only, and their later queries.

    Args:
        batch: the batch.
        kept: whether each prompt stays, (Q,).
    """
    places = np.flatnonzero(kept).tolist()
    later = [n for n, one in enumerate(batch.later) if one.prompt in places]
    rows = [*places, *(len(batch.examples) + n for n in later)]
    return replace(
        batch,
        examples=tuple(batch.examples[i] for i in places),
        generated=tuple(batch.generated[i] for i in places),
        candidates=tuple(batch.candidates[i] for i in places),
        positive=batch.positive[rows],
        negative=batch.negative[rows],
        cross_batch_negative=batch.cross_batch_negative[rows],
        later=tuple(
            LaterIndices(places.index(batch.later[n].prompt), batch.later[n].candidates)
            for n in later
        ),
    )


def _retrieval_only(batch: BatchIndices) -> BatchIndices:
    """The batch without generation: no responses, and only prompts that have positives."""
    own = batch.positive[: len(batch.examples)]
    batch = chosen(batch, [bool(row.any()) for row in own])
    count = len(batch.examples)
    later = tuple(LaterIndices(one.prompt, ()) for one in batch.later)
    return replace(batch, generated=(False,) * count, candidates=((),) * count, later=later)


def _without_passages(batch: BatchIndices) -> BatchIndices:
    """The batch as a plain language model sees it: there is nothing to retrieve."""
    none = batch.positive[: len(batch.examples), :0]
    return replace(
        batch,
        passages=(),
        candidates=((),) * len(batch.examples),
        positive=none,
        negative=none,
        columns=(),
        first_column=0,
        cross_batch_memory=(),
        cross_batch_negative=none,
        later=(),
    )
