"""The batches of a run as token ids."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from imprag.corpus import Corpus
from imprag.model.text import (
    in_context_prompt,
    passage_tokens,
    prompt_tokens,
    response_tokens,
)
from imprag.training.data import TrainingExample
from imprag.training.hard_negatives import HardNegativeMiner
from imprag.training.recipe import LONGEST_TEXT, Recipe
from imprag.training.samplers import BatchIndices, Sampler
from imprag.training.schedule import Schedule
from imprag.training.step import TrainingBatch


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
        for example, generated, context in zip(examples, indices.generated, contexts, strict=True):
            response = self.response(example) if generated else []
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
        )

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
        read = {passage for passages in indices.candidates for passage in passages}
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
    """The batch with some of its prompts only.

    Args:
        batch: the batch.
        kept: whether each prompt stays, (Q,).
    """
    rows = np.flatnonzero(kept)
    return replace(
        batch,
        examples=tuple(batch.examples[i] for i in rows),
        generated=tuple(batch.generated[i] for i in rows),
        candidates=tuple(batch.candidates[i] for i in rows),
        positive=batch.positive[rows],
        negative=batch.negative[rows],
        cross_batch_negative=batch.cross_batch_negative[rows],
    )


def _retrieval_only(batch: BatchIndices) -> BatchIndices:
    """The batch without generation: no responses, and only prompts that have positives."""
    batch = chosen(batch, [bool(row.any()) for row in batch.positive])
    count = len(batch.examples)
    return replace(batch, generated=(False,) * count, candidates=((),) * count)


def _without_passages(batch: BatchIndices) -> BatchIndices:
    """The batch as a plain language model sees it: there is nothing to retrieve."""
    none = batch.positive[:, :0]
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
    )
