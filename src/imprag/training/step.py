"""One step of training: passages are encoded once, prompts read them, both losses follow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from imprag.model.generate import fixed
from imprag.model.inputs import batches_by_length, pad
from imprag.model.kv import EncodedPassages, PassageKV
from imprag.model.model import ImpRAGModel
from imprag.training.distributed import gather_with_gradient, mean_over_processes
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


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """Token ids and labels of Q prompts and P passages.

    Attributes:
        ids: of the examples, Q.
        prompts: without responses, Q.
        responses: what each prompt's loss is on; [] for a prompt that only retrieves.
        passages: P.
        candidates: the passages that each prompt reads, as indices into ``passages``.
        positive, negative: (Q, C) bool, where C counts the passages of all processes.
        first_column: where ``passages`` begin among the C columns.
        columns: what names the C passages from batch to batch: their corpus rows.
        remembered: passages of earlier batches that are negatives too, M, by the same names.
        remembered_negative: (Q, M) bool.
        self_distillation: whether retrieval learns by the objective of the stage of this name,
            rather than by that of the warmup.
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
    remembered: Sequence[int] = ()
    remembered_negative: Tensor | None = None
    self_distillation: bool = False


class StepOutput(NamedTuple):
    """Losses of a batch, () float32 each.

    Attributes:
        loss: J = J_gen + λ · J_ret, with gradient.
        generation: J_gen, the mean over response tokens.
        retrieval: J_ret, the mean over prompts.
        scores: (Q, C) s(q, p), with gradient.
    """

    loss: Tensor
    generation: Tensor
    retrieval: Tensor
    scores: Tensor


class TrainingModel(nn.Module):
    """J = J_gen + λ · J_ret of a batch.

    Every passage runs through the model once: those that a prompt reads through layers 0..t, which
    gives their embeddings and their keys and values at once, the others through layers 0..b. A
    prompt that is not generated runs through layers 0..b only.

    Under FSDP2, shard this module as a whole, by ``fully_shard(model)`` without its layers: weights
    are then gathered once in a step. Sharded one by one, layers would gather theirs in each of the
    many passes, of which processes make different numbers, and free them while the states that
    passages gave to the prompts still need them.

    Args:
        model: the model that is trained.
        stages: the weight of J_ret and the objectives.
        batch_tokens: passages and prompts run in groups of like length with at most so many tokens.
    """

    def __init__(
        self, model: ImpRAGModel, stages: StageSettings, batch_tokens: int | None = None
    ) -> None:
        super().__init__()
        cast_block_inputs(model.lm)
        self.model = model
        self.stages = stages
        self.objectives = {
            False: make_objective(stages.warmup.objective),
            True: make_objective(stages.self_distillation.objective),
        }
        self.cross_batch_memory: dict[int, Tensor] = {}
        self.batch_tokens = batch_tokens or (2048 if model.device.type == "cpu" else 262144)

    def forward(self, batch: TrainingBatch) -> StepOutput:
        """Run a batch; under DDP or FSDP, a process's own part of one."""
        passages = self._encode(batch)
        queries, generation = self._prompts(batch, passages)
        embeddings = gather_with_gradient(passages.embeddings)
        scores = relevance_scores(queries, embeddings)
        retrieval = self._retrieval(batch, passages, queries, scores)
        self._remember(batch, embeddings)
        loss = generation + self.stages.retrieval_weight * retrieval
        return StepOutput(loss, generation, retrieval, scores)

    # The retrieval loss

    def _retrieval(
        self, batch: TrainingBatch, passages: "_Encoded", queries: Tensor, scores: Tensor
    ) -> Tensor:
        """J_ret by the stage's objective, which also sees the passages of earlier batches."""
        objective = self.objectives[batch.self_distillation]
        candidates = self._candidates(batch, scores)
        likelihood = None
        if objective.needs_log_likelihood:
            likelihood = self._log_likelihood(batch, passages, scores)
        earlier_scores, earlier_negative = self._remembered_scores(batch, queries)
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
    def _log_likelihood(self, batch: TrainingBatch, passages: "_Encoded", scores: Tensor) -> Tensor:
        """log P(r | p, q) of each candidate alone, (Q, C), without gradient; else 0."""
        likelihood = torch.zeros_like(scores)
        pairs = self._pairs(batch)
        texts = [[*batch.prompts[prompt], *batch.responses[prompt]] for prompt, _ in pairs]
        for group in self._groups(texts):
            rows = [pairs[i] for i in group]
            logits, labels, _ = self._answer(
                [batch.prompts[prompt] for prompt, _ in rows],
                [batch.responses[prompt] for prompt, _ in rows],
                passages,
                [[passage] for _, passage in rows],
            )
            prompt, passage = torch.tensor(rows, device=scores.device).T
            likelihood[prompt, passage + batch.first_column] = response_log_likelihood(
                logits, labels
            )
        return likelihood

    # Passages of earlier batches

    def _remembered_scores(self, batch: TrainingBatch, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of remembered passages and which are negatives, (Q, those still known) each."""
        known = [n for n, name in enumerate(batch.remembered) if name in self.cross_batch_memory]
        if not known or batch.remembered_negative is None:
            return queries.new_zeros(len(queries), 0), batch.negative[:, :0].to(queries.device)
        embeddings = torch.stack([self.cross_batch_memory[batch.remembered[n]] for n in known])
        scores = relevance_scores(queries, embeddings.to(queries.device))
        return scores, batch.remembered_negative[:, known].to(queries.device)

    def _remember(self, batch: TrainingBatch, embeddings: Tensor) -> None:
        """Keep this batch's embeddings, and of the others those that may still be asked for."""
        if self.training:
            kept = {
                name: x for name, x in self.cross_batch_memory.items() if name in batch.remembered
            }
            self.cross_batch_memory = kept | dict(
                zip(batch.columns, embeddings.detach(), strict=False)
            )

    # Running the model

    def _encode(self, batch: TrainingBatch) -> "_Encoded":
        read = sorted({passage for passages in batch.candidates for passage in passages})
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
            # Another process may have passages. DDP and FSDP want gradients of the same parameters
            # from all processes, so this one brings those of a token that counts nowhere.
            embeddings.append(self.model.passage_embeddings(*self._pad([[0]], [0]))[:0])
        row_of = {passage: row for row, passage in enumerate(order)}
        in_order = [row_of[passage] for passage in range(len(order))]
        return _Encoded(
            EncodedPassages.concatenate(states) if states else None,
            row_of,
            torch.cat(embeddings)[in_order],
        )

    def _prompts(self, batch: TrainingBatch, passages: "_Encoded") -> tuple[Tensor, Tensor]:
        """Query embeddings, (Q, h_k * d_h), and the generation loss."""
        texts = [
            [*prompt, *response]
            for prompt, response in zip(batch.prompts, batch.responses, strict=True)
        ]
        answering = [prompt for prompt, response in enumerate(batch.responses) if response]
        retrieving = [prompt for prompt, response in enumerate(batch.responses) if not response]
        tokens = torch.tensor(float(sum(map(len, batch.responses))), device=self.model.device)
        tokens = mean_over_processes(tokens)
        queries: list[Tensor] = []
        order: list[int] = []
        generation = tokens.new_zeros(())
        for group in self._groups(texts, answering):
            logits, labels, query_embeddings = self._answer(
                [batch.prompts[prompt] for prompt in group],
                [batch.responses[prompt] for prompt in group],
                passages,
                [batch.candidates[prompt] for prompt in group],
            )
            generation = generation + generation_loss(logits, labels, tokens)
            queries.append(query_embeddings)
            order += group
        for group in self._groups(texts, retrieving):
            queries.append(self.model.query_embeddings(*self._pad(batch.prompts, group)))
            order += group
        if not answering and tokens > 0:  # as for passages
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
        passages: "_Encoded",
        candidates: Sequence[Sequence[int]],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run prompts with responses and the passages that they read.

        Returns:
            logits (prompts, n, vocabulary) and labels (prompts, n) of the last n positions, which
            hold all responses, and query embeddings (prompts, h_k * d_h).
        """
        device = self.model.device
        texts = [[*p, *r] for p, r in zip(prompts, responses, strict=True)]
        # Padded on the left, responses end in the same column, and only theirs need logits.
        input_ids, attention_mask = pad(texts, device, left=True)
        lengths = torch.tensor([len(response) for response in responses], device=device)
        shift = [self.model.config.position_shift(len(passages)) for passages in candidates]
        kept = int(lengths.max()) + 1
        output = self.model(
            input_ids,
            attention_mask,
            fixed(passages.kv(self.model, candidates)),
            position_shift=torch.tensor(shift, device=device),
            query_tokens=input_ids.shape[1] - 1 - lengths,
            logits_to_keep=kept,
        )
        from_end = torch.arange(kept - 1, 0, -1, device=device)
        labels = input_ids[:, 1 - kept :].masked_fill(from_end > lengths[:, None], IGNORED)
        return output.logits[:, :-1], labels, output.query_embeddings

    def _pad(self, rows: Sequence[Sequence[int]], group: Sequence[int]) -> tuple[Tensor, Tensor]:
        return pad([rows[i] for i in group], self.model.device)

    def _groups(
        self, rows: Sequence[Sequence[int]], chosen: Sequence[int] | None = None
    ) -> list[list[int]]:
        """The chosen rows, all if not given, in groups of like length."""
        chosen = range(len(rows)) if chosen is None else chosen
        lengths = [len(rows[i]) for i in chosen]
        model = batches_by_length(lengths, self.batch_tokens)
        return [[chosen[i] for i in group] for group in model]


class _Encoded(NamedTuple):
    """The passages of a batch.

    Attributes:
        states: of those that are read.
        row_of: the row in ``states`` of each of these.
        embeddings: of all, (P, h_k * d_h).
    """

    states: EncodedPassages | None
    row_of: Mapping[int, int]
    embeddings: Tensor

    def kv(self, model: ImpRAGModel, candidates: Sequence[Sequence[int]]) -> PassageKV:
        """What prompts read."""
        if self.states is None:
            return model.encode_passages([[] for _ in candidates])
        return self.states.for_prompts(
            [[self.row_of[p] for p in passages] for passages in candidates]
        )
