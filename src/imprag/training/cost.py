"""What a recipe will cost, worked out without weights: the dry run of ``imprag train``.

``docs/guides/scale.md`` derives the formulas and applies them to Llama-3.2-3B and Llama-3.1-8B.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from imprag.errors import ImpRAGError
from imprag.training.architecture import Architecture
from imprag.training.data_cost import CorpusCost, SourceCost, estimate_data
from imprag.training.objectives import make_objective
from imprag.training.recipe import Recipe

DEFAULT_FLOPS = 400e12  # per second and device: an H100 in bfloat16 at 40 % of its peak
WIKIPEDIA_PASSAGES = 37_000_000  # the paper's corpus
_PQ_BYTES = 64


@dataclass(frozen=True)
class StepCost:
    """Tokens of one batch in one stage, over all devices.

    Attributes:
        prompts: tokens of generated prompts with their responses; they run through all layers.
        responses: tokens of the responses among them; the head runs for these only.
        queries: tokens of prompts that only retrieve; they run through layers 0..b-1.
        read: tokens of passages that some prompt reads; they run through layers 0..t.
        embedded: tokens of passages that are only embedded; they run through layers 0..b-1.
        scored: tokens of prompts that run again for each candidate alone, without gradient.
        prefixes: passage tokens that prompts read, counted once per prompt.
    """

    prompts: float
    responses: float
    queries: float
    read: float
    embedded: float
    scored: float
    prefixes: float

    @property
    def tokens(self) -> float:
        """All tokens of prompts and passages in training."""
        return self.prompts + self.queries + self.read + self.embedded

    def layer_tokens(self, model: Architecture) -> float:
        """Tokens times the layers that they run through with gradient."""
        bottom = (self.queries + self.embedded) * model.b
        return self.prompts * model.layers + self.read * (model.t + 1) + bottom

    def flops(self, model: Architecture, *, checkpointing: bool) -> float:
        """FLOPs: 6 × parameters × tokens, 8 with checkpointing, and 2 for scoring."""
        layers = (8 if checkpointing else 6) * self.layer_tokens(model)
        scoring = 2 * self.scored * model.layers
        return (layers + scoring) * model.layer_parameters + 6 * self.responses * model.head


class CostEstimate:
    """Estimates the cost of a recipe: tokens, FLOPs, hours, memory and storage.

    Missing data is not an error: it is listed, and its lengths and counts are assumed.

    Args:
        recipe: the recipe.
        devices: number of devices that train together.
        flops: FLOPs per second that one device achieves.
        data: sizes of corpus and data, if they are known; by default they are measured.

    Raises:
        ImpRAGError: the model is not available or does not fit the recipe, or local data cannot
            be read.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        devices: int = 1,
        flops: float = DEFAULT_FLOPS,
        data: tuple[CorpusCost, list[SourceCost]] | None = None,
    ) -> None:
        if devices < 1 or not 0 < flops < math.inf:
            raise ImpRAGError(
                f"devices must be at least 1 and flops above 0, not {devices} and {flops:g}"
            )
        self.recipe = recipe
        self.devices = devices
        self.flops = flops
        self.model = Architecture(recipe)
        self.corpus, self.sources = data or estimate_data(recipe)

    @cached_property
    def stages(self) -> dict[str, tuple[float, StepCost]]:
        """Share of the steps and mean batch of each stage; empty stages are left out."""
        stages = self.recipe.stages
        bottom = stages.bottom.fraction if stages.bottom else 0.0
        warm = bottom + stages.warmup.fraction
        scores = make_objective(stages.warmup.objective).needs_log_likelihood
        distils = make_objective(stages.self_distillation.objective).needs_log_likelihood
        ranked = stages.mine_every is not None
        warming = self._batch(self._embedded_tokens(bottom, warm), ranked=ranked, scoring=scores)
        distilling = self._batch(self._embedded_tokens(warm, 1.0), ranked=ranked, scoring=distils)
        by_stage = {
            "warmup": (stages.warmup.fraction, warming),
            "self_distillation": (max(0.0, 1 - warm), distilling),
        }
        if stages.bottom:
            length = self._embedded_tokens(0.0, bottom)
            every = stages.bottom.generate_every
            part = bottom / every if every else 0.0
            by_stage = {
                "bottom": (bottom - part, self._batch(length, generating=False)),
                "bottom, generating": (part, self._batch(length, scoring=scores)),
                **by_stage,
            }
        if self.recipe.system != "imprag":
            by_stage = {
                name: (share, self._in_context(step)) for name, (share, step) in by_stage.items()
            }
        if self.recipe.system in ("ra-dit", "ra-dit-lm"):
            scored, embedding = max(0.0, 1 - warm), warming
            if self.recipe.system == "ra-dit":  # a text encoder reads whole passages
                scored, embedding = 1.0, self._batch(self.corpus.passage_tokens, ranked=ranked)
            by_stage = {"retriever": (1.0, self._retriever(embedding, scored)), **by_stage}
        return {name: (share, step) for name, (share, step) in by_stage.items() if share > 1e-9}

    @property
    def steps(self) -> int:
        """Number of optimizer steps."""
        return self.recipe.steps(sum(source.examples for source in self.sources))

    @property
    def step_flops(self) -> float:
        """FLOPs of an optimizer step, as the mean over the stages."""
        checkpointing = bool(self.recipe.trainer["gradient_checkpointing"])
        batch = sum(
            share * step.flops(self.model, checkpointing=checkpointing)
            for share, step in self.stages.values()
        )
        return batch * self.recipe.accumulation

    @property
    def hours(self) -> float:
        """Hours of training alone, without teacher labels, mining, evaluation and saving."""
        return self.steps * self.step_flops / (self.flops * self.devices) / 3600

    def memory(self) -> dict[str, float]:
        """Bytes on one device at the end of the forward pass of the largest batch.

        In a stage with a length curriculum, its mean batch counts.
        """
        model, precision = self.model, self.recipe.precision
        largest = max(
            (step for _, step in self.stages.values()), key=lambda s: s.layer_tokens(model)
        )
        layer_tokens = largest.layer_tokens(model) / self.devices
        activations = layer_tokens * model.activation_bytes(precision)
        if self.recipe.trainer["gradient_checkpointing"]:
            # The inputs of all layers, and the activations of the layer that is recomputed.
            tokens = max(largest.prompts, largest.read) / self.devices
            recomputed = tokens * model.activation_bytes(precision)
            activations = layer_tokens * 4 * model.hidden + recomputed
        halves = 1 if precision == "bf16" else 2
        parts = {
            "weights": 4.0 * model.total,
            "weights in bfloat16": 2.0 * model.total if precision == "bf16" else 0.0,
            "gradients": 4.0 * model.trained,
            "optimizer": 8.0 * model.trained,
            "activations": activations,
            "logits": 8.0 * largest.responses * model.vocabulary / self.devices,
            "passage KV": halves * largest.prefixes * model.kv_bytes / self.devices,
        }
        if self.recipe.model.frozen_passages != "none":
            parts["frozen base model"] = 4.0 * model.total
        states = parts["weights"] + parts["gradients"] + parts["optimizer"]
        total = sum(parts.values())
        # The model is sharded as a whole, so FSDP2 gathers all weights at once and holds whole
        # gradients before it scatters them, both in the precision that layers compute in.
        gathered = 2.0 * halves * (model.total + model.trained)
        sharded = total - states - parts["weights in bfloat16"] + states / self.devices + gathered
        return {**parts, "total, replicated (DDP)": total, "total, sharded (FSDP2)": sharded}

    def storage(self, passages: int) -> dict[str, float]:
        """Bytes of the index and of the stored KV for this number of passages."""
        values = passages * self.model.dimension
        tokens = passages * self.corpus.passage_tokens
        return {
            "flat float32": 4.0 * values,
            "flat float16": 2.0 * values,
            "PQ64": float(_PQ_BYTES * passages),
            "stored KV": tokens * self.model.kv_bytes,
        }

    def embedding_hours(self, passages: int) -> float:
        """Hours to embed this number of passages with layers 0..b-1 on all devices."""
        tokens = passages * self.corpus.passage_tokens
        flops = 2 * tokens * self.model.b * self.model.layer_parameters
        return flops / (self.flops * self.devices) / 3600

    def to_dict(self) -> dict[str, Any]:
        """The cost estimate as JSON-like values."""
        model, steps = self.model, self.steps
        accumulation = self.recipe.accumulation
        corpora = {"37M passages": WIKIPEDIA_PASSAGES}
        if self.corpus.passages is not None:
            corpora = {"corpus": self.corpus.passages, **corpora}
        return {
            "model": {
                "base": self.recipe.model.base,
                "layers": model.layers,
                "b": model.b,
                "t": model.t,
                "embedding_dimension": model.dimension,
            },
            "parameters": {
                "total": model.total,
                **model.groups,
                "other": model.total - sum(model.groups.values()),
                "trained": model.trained,
            },
            "corpus": vars(self.corpus),
            "data": [vars(source) for source in self.sources],
            "stages": {
                name: {
                    "share": share,
                    **{key: round(value) for key, value in vars(step).items()},
                }
                for name, (share, step) in self.stages.items()
            },
            "memory": {key: round(value) for key, value in self.memory().items()},
            "training": {
                "devices": self.devices,
                "flops_per_device": self.flops,
                "steps": steps,
                "tokens_per_step": round(self._mean_tokens() * accumulation),
                "tokens": round(steps * self._mean_tokens() * accumulation),
                "flops_per_step": self.step_flops,
                "flops": steps * self.step_flops,
                "hours": self.hours,
                "device_hours": self.hours * self.devices,
            },
            "storage": {
                name: {
                    **{key: round(value) for key, value in self.storage(passages).items()},
                    "embedding_hours": self.embedding_hours(passages),
                }
                for name, passages in corpora.items()
            },
            "kv_bytes_per_token": model.kv_bytes,
        }

    def _mean_tokens(self) -> float:
        return sum(share * step.tokens for share, step in self.stages.values())

    def _embedded_tokens(self, begin: float, end: float) -> float:
        """Mean length of passages that are only embedded, between two fractions of the steps."""
        length, curriculum = self.corpus.passage_tokens, self.recipe.batch.passage_tokens
        if not curriculum or begin >= end:
            return length
        ends = [*(part.after for part in curriculum[1:]), 1.0]
        tokens = sum(
            max(0.0, min(end, stop) - max(begin, part.after)) * min(length, part.tokens)
            for part, stop in zip(curriculum, ends, strict=True)
        )
        return tokens / (end - begin)

    def _in_context(self, step: StepCost) -> StepCost:
        """The batch of a baseline's reader: each prompt has its candidates before it."""
        return StepCost(step.prompts + step.prefixes, step.responses, 0, 0, 0, 0, 0)

    def _retriever(self, step: StepCost, scored: float) -> StepCost:
        """The batch of a baseline's separate retriever.

        Its prompts and passages run through layers 0..b-1, or through a bi-encoder of about that
        size. In a share of the steps, the language model reads each candidate before its prompt.
        """
        prompts = self.recipe.batch.prompts
        sources = [one for one in self.sources if one.retrieves]
        queries = prompts * sum(one.share * one.prompt_tokens for one in sources)
        passage = self.corpus.passage_tokens
        texts = sum(one.share * (one.prompt_tokens + one.response_tokens) for one in sources)
        read = texts + passage * sum(one.share for one in sources)
        pairs = prompts * self._generated_share * self.recipe.batch.candidates * read
        return StepCost(0, 0, queries, 0, step.read + step.embedded, scored * pairs, 0)

    def _batch(
        self,
        embedded_tokens: float,
        *,
        generating: bool = True,
        ranked: bool = False,
        scoring: bool = False,
    ) -> StepCost:
        """The mean batch of a stage, if there are enough questions about each passage.

        Args:
            embedded_tokens: length of a passage that is only embedded.
            generating: whether prompts are generated; otherwise they only retrieve.
            ranked: whether candidates come from the model's own index.
            scoring: whether the language model scores each candidate.
        """
        batch = self.recipe.batch
        hard = batch.candidates if ranked else batch.hard_negatives
        questions = 1 + batch.questions_per_passage * batch.candidates
        prompts = responses = queries = scored = passages = read = readers = 0.0
        for source in self.sources:
            sampled = batch.prompts * source.share
            length = source.prompt_tokens + source.response_tokens
            generated = sampled if generating else 0.0
            if source.retrieves:
                chosen = sampled * self._generated_share if source.response_tokens else 0.0
                total = sampled + chosen * (questions - 1)
                generated = chosen * questions if generating else 0.0
                queries += (total - generated) * source.prompt_tokens
                readers += generated
                scored += generated * batch.candidates * length if scoring else 0.0
                positives = min(source.positives, batch.positives)
                passages += sampled * positives + (chosen if ranked else sampled) * hard
                # Positives take up to half of the candidates, then the prompt's hard negatives;
                # the rest are passages of other prompts.
                own = min(positives, -(-batch.candidates // 2)) + hard
                read += chosen * min(own, batch.candidates)
            prompts += generated * length
            responses += generated * source.response_tokens
        read = min(passages, max(read, batch.candidates), readers * batch.candidates)
        length = self.corpus.passage_tokens
        return StepCost(
            prompts=prompts,
            responses=responses,
            queries=queries,
            read=read * length,
            embedded=(passages - read) * embedded_tokens,
            scored=scored,
            prefixes=readers * batch.candidates * length,
        )

    @property
    def _generated_share(self) -> float:
        """Share of the retrieving prompts with a response that `batch.generate` selects."""
        batch = self.recipe.batch
        retrieving = batch.prompts * sum(
            one.share for one in self.sources if one.retrieves and one.response_tokens
        )
        if batch.generate is None or batch.generate >= retrieving:
            return 1.0
        return batch.generate / retrieving
