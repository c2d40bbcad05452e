"""The training step: encodes passages once, runs prompts on them, and computes both losses."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from imprag.model.generate import fixed
from imprag.model.inputs import batches_by_length, pad
from imprag.model.kv import EncodedPassages, PassageKV
from imprag.model.model import ImpRAGModel
from imprag.training.distributed import (
    gather_with_gradient,
    mean_over_processes,
    whole_weights,
)
from imprag.training.objectives import (
    IGNORED,
    ScoredBatch,
    generation_loss,
    make_objective,
    relevance_scores,
    response_log_likelihood,
)
from imprag.training.precision import cast_block_inputs
from imprag.training.recipe import StageSettings


class LaterQuery(NamedTuple):
    """A token of a response that retrieves again.

    Attributes:
        prompt: the prompt's number in the batch.
        written: tokens of the response, this one included.
        candidates: the passages that are read from it on, as indices into ``passages``; () if the
            response is not generated.
    """

    prompt: int
    written: Sequence[int]
    candidates: Sequence[int]


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """Token ids and labels of Q prompts and P passages, and of H later queries.

    Attributes:
        ids: ids of the examples, Q.
        prompts: tokens of the prompts without responses, Q.
        responses: tokens of the generation loss, Q; [] for a prompt that only retrieves.
        passages: tokens of the passages, P.
        candidates: the passages that each prompt reads, as indices into ``passages``, Q.
        positive, negative: (Q + H, C) bool, the prompts' rows first; C is the number of passages of
            all processes.
        first_column: column of the first of ``passages``.
        columns: corpus rows of the C passages.
        cross_batch_memory: corpus rows of earlier batches' passages in the cross-batch memory, M.
        cross_batch_negative: (Q + H, M) bool, which of them are negatives.
        self_distillation: whether retrieval learns by the objective of the self-distillation stage
            instead of the warmup's.
        later: the later queries, H; those of a prompt in the order of its response.
    """

    ids: Sequence[str]
    prompts: Sequence[Sequence[int]]
    responses: Sequence[Sequence[int]]
    passages: Sequence[Sequence[int]]
    candidates: Sequence[Sequence[int]]
    positive: Tensor
    negative: Tensor
    first_column: int = 0
    columns: Sequence[int] = ()
    cross_batch_memory: Sequence[int] = ()
    cross_batch_negative: Tensor | None = None
    self_distillation: bool = False
    later: Sequence[LaterQuery] = ()

    @property
    def tokens(self) -> int:
        """Tokens of prompts, responses and passages."""
        return sum(map(len, [*self.prompts, *self.responses, *self.passages]))


class StepOutput(NamedTuple):
    """Losses of a batch, () float32 each, and its scores.

    Attributes:
        loss: J = J_gen + λ · J_ret, with gradient.
        generation: J_gen, the mean over response tokens.
        retrieval: J_ret, the mean over prompts.
        scores: (Q + H, C) s(q, p), with gradient.
    """

    loss: Tensor
    generation: Tensor
    retrieval: Tensor
    scores: Tensor


class JointLoss(nn.Module, ABC):
    """The loss J = J_gen + λ · J_ret of a batch, whatever computes embeddings and likelihoods.

    Args:
        stages: the weight of J_ret and the objectives.
    """

    def __init__(self, stages: StageSettings) -> None:
        super().__init__()
        self.stages = stages
        self.objectives = {
            False: make_objective(stages.warmup.objective),
            True: make_objective(stages.self_distillation.objective),
        }
        self.cross_batch_memory: dict[int, Tensor] = {}

    def forward(self, batch: TrainingBatch) -> StepOutput:
        """The losses of a batch; under DDP or FSDP, of this process's shard of it."""
        passages = self._encode(batch)
        queries, generation = self._prompts(batch, passages)
        embeddings = gather_with_gradient(passages.embeddings)
        scores = relevance_scores(queries, embeddings)
        retrieval = self._retrieval(batch, passages, queries, scores)
        self._remember(batch, embeddings)
        loss = generation + self.stages.retrieval_weight * retrieval
        return StepOutput(loss, generation, retrieval, scores)

    @abstractmethod
    def _encode(self, batch: TrainingBatch) -> "Encoded":
        """Encode all passages."""

    @abstractmethod
    def _prompts(self, batch: TrainingBatch, passages: "Encoded") -> tuple[Tensor, Tensor]:
        """Query embeddings, (Q, dimension), and the generation loss."""

    @abstractmethod
    def _pair_likelihoods(
        self, batch: TrainingBatch, passages: "Encoded", pairs: Sequence[tuple[int, int]]
    ) -> Tensor:
        """log P(r | p, q) of prompts that each read one passage alone, (pairs,)."""

    # The retrieval loss

    def _retrieval(
        self, batch: TrainingBatch, passages: "Encoded", queries: Tensor, scores: Tensor
    ) -> Tensor:
        """J_ret by the stage's objective, which also sees the passages of earlier batches."""
        objective = self.objectives[batch.self_distillation]
        candidates = self._candidates(batch, scores)
        likelihood = None
        if objective.needs_log_likelihood:
            likelihood = self._log_likelihood(batch, passages, scores)
        earlier_scores, earlier_negative = self._memory_scores(batch, queries)
        none = torch.zeros_like(earlier_negative)
        positive, negative = batch.positive.to(scores.device), batch.negative.to(scores.device)
        known = ScoredBatch(
            positive=torch.cat([positive, none], dim=1),
            negative=torch.cat([negative, earlier_negative], dim=1),
            candidates=torch.cat([candidates, none], dim=1),
            log_likelihood=None
            if likelihood is None
            else torch.cat([likelihood, none.to(likelihood.dtype)], dim=1),
        )
        return objective(torch.cat([scores, earlier_scores], dim=1), known)

    def _pairs(self, batch: TrainingBatch) -> list[tuple[int, int]]:
        """Prompts that are generated, each with each of the passages that it reads."""
        return [
            (prompt, passage)
            for prompt, read in enumerate(batch.candidates)
            if batch.responses[prompt]
            for passage in read
        ]

    def _candidates(self, batch: TrainingBatch, scores: Tensor) -> Tensor:
        """Which of the columns each prompt reads, (Q, C) bool."""
        mask = torch.zeros_like(scores, dtype=torch.bool)
        for prompt, passage in self._pairs(batch):
            mask[prompt, passage + batch.first_column] = True
        return mask

    @torch.no_grad()
    def _log_likelihood(self, batch: TrainingBatch, passages: "Encoded", scores: Tensor) -> Tensor:
        """log P(r | p, q) of each candidate alone, (Q, C), without gradient; else 0."""
        likelihood = torch.zeros_like(scores)
        if pairs := self._pairs(batch):
            prompt, passage = torch.tensor(pairs, device=scores.device).T
            likelihoods = self._pair_likelihoods(batch, passages, pairs)
            likelihood[prompt, passage + batch.first_column] = likelihoods
        return likelihood

    # Cross-batch memory

    def _memory_scores(self, batch: TrainingBatch, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and negatives of passages in the cross-batch memory, (Q, those present) each."""
        memory, rows = self.cross_batch_memory, batch.cross_batch_memory
        known = [n for n, row in enumerate(rows) if row in memory]
        if not known or batch.cross_batch_negative is None:
            return queries.new_zeros(len(queries), 0), batch.negative[:, :0].to(queries.device)
        embeddings = torch.stack([memory[rows[n]] for n in known])
        scores = relevance_scores(queries, embeddings.to(queries.device))
        return scores, batch.cross_batch_negative[:, known].to(queries.device)

    def _remember(self, batch: TrainingBatch, embeddings: Tensor) -> None:
        """Add this batch's embeddings to the memory and drop those that left its window."""
        if self.training:
            rows = batch.cross_batch_memory
            kept = {row: x for row, x in self.cross_batch_memory.items() if row in rows}
            self.cross_batch_memory = kept | dict(
                zip(batch.columns, embeddings.detach(), strict=False)
            )


class TrainingModel(JointLoss):
    """Computes the loss J = J_gen + λ · J_ret of a batch with an ImpRAG model.

    Each passage runs through the model once. A passage that a prompt reads runs through layers
    0..t, which gives its embedding and its keys and values; the others run through layers 0..b, as
    do prompts that are not generated.

    Under FSDP2, shard this module as a whole, by ``fully_shard(model)`` without its layers: weights
    are then gathered once per step. Layers that are sharded one by one would gather their weights
    in each pass, although processes make different numbers of passes, and free them before the
    backward pass through the passages' keys and values.

    Args:
        model: the model that is trained.
        stages: the weight of J_ret and the objectives.
        batch_tokens: the most tokens of a group; passages and prompts run in groups of similar
            length.
    """

    def __init__(
        self, model: ImpRAGModel, stages: StageSettings, batch_tokens: int | None = None
    ) -> None:
        super().__init__(stages)
        cast_block_inputs(model.lm)
        self.model = model
        self.batch_tokens = batch_tokens or (2048 if model.device.type == "cpu" else 262144)

    @contextmanager
    def inference(self) -> Iterator[ImpRAGModel]:
        """The model in evaluation mode and, under FSDP2, with all weights in every process.

        All processes enter and leave together.
        """
        training = self.training
        self.eval()
        try:
            with whole_weights(self):
                yield self.model
        finally:
            self.train(training)

    @torch.no_grad()
    def response_log_likelihoods(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        passages: "Encoded | None" = None,
        read: Sequence[Sequence[int]] | None = None,
    ) -> Tensor:
        """log P(response) of each prompt, (prompts,) float32.

        Args:
            prompts, responses: their tokens.
            passages: the encoded passages.
            read: those that each prompt reads; none by default.
        """
        passages = passages or Encoded(None, {}, torch.empty(0))
        read = [[]] * len(prompts) if read is None else read
        found = torch.zeros(len(prompts), device=self.model.device)
        for group in self._groups([[*p, *r] for p, r in zip(prompts, responses, strict=True)]):
            logits, labels, _ = self._answer(
                [prompts[i] for i in group],
                [responses[i] for i in group],
                passages,
                [read[i] for i in group],
            )
            found[group] = response_log_likelihood(logits, labels)
        return found

    def _pair_likelihoods(
        self, batch: TrainingBatch, passages: "Encoded", pairs: Sequence[tuple[int, int]]
    ) -> Tensor:
        return self.response_log_likelihoods(
            [batch.prompts[prompt] for prompt, _ in pairs],
            [batch.responses[prompt] for prompt, _ in pairs],
            passages,
            [[passage] for _, passage in pairs],
        )

    def _encode(self, batch: TrainingBatch) -> "Encoded":
        """Encode all passages: 0..t if a prompt reads them, else 0..b."""
        found = [*batch.candidates, *(one.candidates for one in batch.later)]
        read = sorted({passage for passages in found for passage in passages})
        embedded = sorted(set(range(len(batch.passages))) - set(read))
        states: list[EncodedPassages] = []
        embeddings: list[Tensor] = []
        order: list[int] = []
        for group in self._groups(batch.passages, read):
            states.append(self.model.encode(*self._pad(batch.passages, group)))
            embeddings.append(states[-1].embeddings)
            order += group
        for group in self._groups(batch.passages, embedded):
            embeddings.append(self.model.passage_embeddings(*self._pad(batch.passages, group)))
            order += group
        if not order:
            # Other processes may have passages. DDP and FSDP need gradients of the same parameters
            # from all processes, so this one runs a token that no loss uses.
            embeddings.append(self.model.passage_embeddings(*self._pad([[0]], [0]))[:0])
        row_of = {passage: row for row, passage in enumerate(order)}
        in_order = [row_of[passage] for passage in range(len(order))]
        return Encoded(
            EncodedPassages.concatenate(states) if states else None,
            row_of,
            torch.cat(embeddings)[in_order],
        )

    def _prompts(self, batch: TrainingBatch, passages: "Encoded") -> tuple[Tensor, Tensor]:
        """Query embeddings, (Q + H, h_k * d_h), and the generation loss."""
        texts = [
            [*prompt, *response]
            for prompt, response in zip(batch.prompts, batch.responses, strict=True)
        ]
        generated = [prompt for prompt, response in enumerate(batch.responses) if response]
        retrieving = [prompt for prompt, response in enumerate(batch.responses) if not response]
        tokens = torch.tensor(float(sum(map(len, batch.responses))), device=self.model.device)
        tokens = mean_over_processes(tokens)
        queries: list[Tensor] = []
        order: list[int] = []
        generation = tokens.new_zeros(())
        for group in self._groups(texts, generated):
            later = [
                [n for n, one in enumerate(batch.later) if one.prompt == prompt] for prompt in group
            ]
            logits, labels, query_embeddings = self._answer(
                [batch.prompts[prompt] for prompt in group],
                [batch.responses[prompt] for prompt in group],
                passages,
                [batch.candidates[prompt] for prompt in group],
                [[batch.later[n] for n in own] for own in later],
            )
            generation = generation + generation_loss(logits, labels, tokens)
            queries.append(query_embeddings)
            order += [*group, *(len(texts) + n for own in later for n in own)]
        alone = {prompt: batch.prompts[prompt] for prompt in retrieving}
        for n, one in enumerate(batch.later, len(texts)):
            if one.prompt in retrieving:
                alone[n] = [*batch.prompts[one.prompt], *one.written]
        rows, numbers = list(alone.values()), list(alone)
        for group in self._groups(rows):
            queries.append(self.model.query_embeddings(*self._pad(rows, group)))
            order += [numbers[n] for n in group]
        if not generated and tokens > 0:  # as for passages
            logits, _, query_embeddings = self._answer([[0]], [[0]], passages, [[]])
            generation = generation + logits[:0].sum()
            queries.append(query_embeddings[:0])
        elif not order:
            queries.append(self.model.query_embeddings(*self._pad([[0]], [0]))[:0])
        in_order = sorted(range(len(order)), key=order.__getitem__)
        return torch.cat(queries)[in_order], generation

    def _answer(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        passages: "Encoded",
        candidates: Sequence[Sequence[int]],
        later: Sequence[Sequence[LaterQuery]] = (),
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run prompts with their responses on the passages that they read.

        Args:
            prompts, responses: tokens.
            passages: the batch's.
            candidates: what each prompt reads.
            later: the later queries of each response, in order.

        Returns:
            logits (prompts, n, vocabulary) and labels (prompts, n) of the last n positions, which
            hold all responses, and query embeddings (prompts + later queries, h_k * d_h).
        """
        device = self.model.device
        texts = [[*p, *r] for p, r in zip(prompts, responses, strict=True)]
        # With padding on the left, all responses end in the last column, and logits are computed
        # for the columns of responses only.
        input_ids, attention_mask = pad(texts, device, left=True)
        lengths = torch.tensor([len(response) for response in responses], device=device)
        shift = [self.model.config.position_shift(len(passages)) for passages in candidates]
        kept = int(lengths.max()) + 1
        # Where each later query's token stands.
        starts = [
            [input_ids.shape[1] - len(responses[n]) + len(one.written) - 1 for one in own]
            for n, own in enumerate(later)
        ]
        asking = [(row, place) for row, places in enumerate(starts) for place in places]
        if asking:
            kv = passages.kv_in_windows(self.model, candidates, later, starts)
        else:
            kv = passages.kv(self.model, candidates)
        output = self.model(
            input_ids,
            attention_mask,
            fixed(kv),
            later_tokens=torch.tensor(asking, device=device) if asking else None,
            position_shift=torch.tensor(shift, device=device),
            query_tokens=input_ids.shape[1] - 1 - lengths,
            logits_to_keep=kept,
        )
        from_end = torch.arange(kept - 1, 0, -1, device=device)
        labels = input_ids[:, 1 - kept :].masked_fill(from_end > lengths[:, None], IGNORED)
        queries = output.query_embeddings
        if output.later_embeddings is not None:
            queries = torch.cat([queries, output.later_embeddings])
        return output.logits[:, :-1], labels, queries

    def _pad(self, rows: Sequence[Sequence[int]], group: Sequence[int]) -> tuple[Tensor, Tensor]:
        return pad([rows[i] for i in group], self.model.device)

    def _groups(
        self, rows: Sequence[Sequence[int]], chosen: Sequence[int] | None = None
    ) -> list[list[int]]:
        """The chosen rows, or all rows, in groups of similar length."""
        chosen = range(len(rows)) if chosen is None else chosen
        lengths = [len(rows[i]) for i in chosen]
        groups = batches_by_length(lengths, self.batch_tokens)
        return [[chosen[i] for i in group] for group in groups]


class Encoded(NamedTuple):
    """The encoded passages of a batch.

    Attributes:
        states: keys and values of the passages that are read; None if there are none.
        row_of: the row of each passage in encoding order, which is that of ``states`` for passages
            that are read.
        embeddings: embeddings of all passages, (P, h_k * d_h).
    """

    states: EncodedPassages | None
    row_of: Mapping[int, int]
    embeddings: Tensor

    def kv(self, model: ImpRAGModel, candidates: Sequence[Sequence[int]]) -> PassageKV:
        """The KV of each prompt's candidates."""
        if self.states is None:
            return model.encode_passages([[] for _ in candidates])
        return self.states.for_prompts(
            [[self.row_of[p] for p in passages] for passages in candidates]
        )

    def kv_in_windows(
        self,
        model: ImpRAGModel,
        candidates: Sequence[Sequence[int]],
        later: Sequence[Sequence[LaterQuery]],
        starts: Sequence[Sequence[int]],
    ) -> PassageKV:
        """The KV of all passages that prompts and responses read, each from its token on.

        Args:
            model: the model.
            candidates: what each prompt reads.
            later: the later queries of each response.
            starts: the column of each later query's token.
        """
        beside = model.config.passages_kept == "beside"
        read, windows = [], []
        for row, own in enumerate(later):
            found: list[tuple[int, Collection[int]]] = [(0, candidates[row])]
            for one, start in zip(own, starts[row], strict=True):
                former = found[-1][1] if beside else ()
                found.append((start, dict.fromkeys([*former, *one.candidates])))
            seen = _windows(found)
            read.append([passage for passage, _ in seen])
            windows.append([window for _, window in seen])
        return replace(self.kv(model, read), windows=windows)


def _windows(
    found: Sequence[tuple[int, Collection[int]]],
) -> list[tuple[int, tuple[int, int]]]:
    """Passages, each with the columns from which and before which it is read.

    Args:
        found: the columns from which other passages are read, ascending, with all of them.
    """
    closed, first = [], dict[int, int]()
    for start, read in found:
        left = [passage for passage in first if passage not in read]
        closed += [(passage, (first.pop(passage), start)) for passage in left]
        first = {passage: first.get(passage, start) for passage in [*first, *read]}
    return [*closed, *((passage, (start, sys.maxsize)) for passage, start in first.items())]
