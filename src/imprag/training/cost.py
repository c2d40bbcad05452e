"""What a recipe will cost, worked out without weights: the dry run of ``imprag train``.

``docs/guides/scale.md`` derives the formulas and applies them to Llama-3.2-3B and Llama-3.1-8B.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from imprag.errors import ImpRAGError
from imprag.training.architecture import Architecture
from imprag.training.data_cost import estimate_data
from imprag.training.recipe import Recipe

DEFAULT_FLOPS = 400e12  # of one device: an H100 in bfloat16 at 40 % of its peak
WIKIPEDIA_PASSAGES = 37_000_000  # the paper's corpus
_PQ_BYTES = 64


@dataclass(frozen=True)
class StepCost:
    """Tokens of one batch in one stage, over all devices.

    Attributes:
        prompts: prompts that are answered; they run through all layers.
        responses: the answers' part of them; the head is computed for these.
        queries: prompts that only retrieve; they run through layers 0..b-1.
        read: passages that some prompt reads; they run through layers 0..t.
        embedded: passages that are only embedded; they run through layers 0..b-1.
        scored: prompts run once more for each candidate alone, without gradient.
        prefixes: passage tokens as the prompts read them, each prompt its own.
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
        """All tokens that are trained on, prompts and passages."""
        return self.prompts + self.queries + self.read + self.embedded

    def layer_tokens(self, model: Architecture) -> float:
        """Tokens times the layers that they really run through, with gradient."""
        bottom = (self.queries + self.embedded) * model.b
        return self.prompts * model.layers + self.read * (model.t + 1) + bottom

    def flops(self, model: Architecture, *, checkpointing: bool) -> float:
        """6 × parameters × tokens; 2 more where layers are computed twice or only scored."""
        layers = (8 if checkpointing else 6) * self.layer_tokens(model)
        scoring = 2 * self.scored * model.layers
        return (layers + scoring) * model.layer_parameters + 6 * self.responses * model.head


class CostEstimate:
    """What a recipe will cost.

    Missing data is no error here: it is listed, and lengths and numbers are assumed for it.

    Args:
        recipe: the recipe.
        devices: that train together.
        flops: what one device really computes in a second.

    Raises:
        ImpRAGError: the model is not to be had or does not fit the recipe, or data that is here
            cannot be read.
    """

    def __init__(self, recipe: Recipe, *, devices: int = 1, flops: float = DEFAULT_FLOPS) -> None:
        if devices < 1 or not 0 < flops < math.inf:
            raise ImpRAGError(f"a plan needs devices and FLOPs, not {devices} and {flops:g}")
        self.recipe = recipe
        self.devices = devices
        self.flops = flops
        self.model = Architecture(recipe)
        self.corpus, self.sources = estimate_data(recipe)

    @cached_property
    def stages(self) -> dict[str, tuple[float, StepCost]]:
        """Every stage's share of the steps and its batch; stages without a share are left out."""
        stages = self.recipe.stages
        bottom = stages.bottom.fraction if stages.bottom else 0.0
        warm = bottom + stages.warmup.fraction
        warming = self._batch(
            self._embedded_tokens(bottom, warm), ranked=stages.mine_every is not None
        )
        distilling = self._batch(
            self._embedded_tokens(warm, 1.0),
            ranked=stages.mine_every is not None,
            scoring=True,
        )
        planned = {
            "warmup": (stages.warmup.fraction, warming),
            "self_distillation": (max(0.0, 1 - warm), distilling),
        }
        if stages.bottom:
            length = self._embedded_tokens(0.0, bottom)
            every = stages.bottom.generate_every
            part = bottom / every if every else 0.0
            planned = {
                "bottom": (bottom - part, self._batch(length, generating=False)),
                "bottom, generating": (part, self._batch(length)),
                **planned,
            }
        return {name: (share, step) for name, (share, step) in planned.items() if share > 1e-9}

    @property
    def steps(self) -> int:
        """Steps of the optimizer."""
        return self.recipe.steps(sum(source.examples for source in self.sources))

    @property
    def step_flops(self) -> float:
        """Of one step of the optimizer, the mean over the stages."""
        checkpointing = bool(self.recipe.trainer["gradient_checkpointing"])
        batch = sum(
            share * step.flops(self.model, checkpointing=checkpointing)
            for share, step in self.stages.values()
        )
        return batch * self.recipe.accumulation

    @property
    def hours(self) -> float:
        """Of training alone: without labels, ranks, evaluation and saving."""
        return self.steps * self.step_flops / (self.flops * self.devices) / 3600

    def memory(self) -> dict[str, float]:
        """Bytes on one device at the end of the forward pass of the largest batch.

        Where passages grow within a stage, of its mean batch.
        """
        model, precision = self.model, self.recipe.precision
        largest = max(
            (step for _, step in self.stages.values()), key=lambda s: s.layer_tokens(model)
        )
        layer_tokens = largest.layer_tokens(model) / self.devices
        activations = layer_tokens * model.activation_bytes(precision)
        if self.recipe.trainer["gradient_checkpointing"]:
            # The inputs of all layers, and the widest layer computed once more.
            tokens = max(largest.prompts, largest.read) / self.devices
            again = tokens * model.activation_bytes(precision)
            activations = layer_tokens * 4 * model.hidden + again
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
        # FSDP2 gathers all weights at once, since the model is sharded as a whole, and has whole
        # gradients before they are shared out; both in the precision that layers compute in.
        gathered = 2.0 * halves * (model.total + model.trained)
        sharded = total - states - parts["weights in bfloat16"] + states / self.devices + gathered
        return {**parts, "total, replicated (DDP)": total, "total, sharded (FSDP2)": sharded}

    def storage(self, passages: int) -> dict[str, float]:
        """Bytes of the index and of stored keys and values for a corpus of so many passages."""
        values = passages * self.model.dimension
        tokens = passages * self.corpus.passage_tokens
        return {
            "flat float32": 4.0 * values,
            "flat float16": 2.0 * values,
            "PQ64": float(_PQ_BYTES * passages),
            "stored KV": tokens * self.model.kv_bytes,
        }

    def embedding_hours(self, passages: int) -> float:
        """Of embedding so many passages by layers 0..b-1 on all devices."""
        tokens = passages * self.corpus.passage_tokens
        flops = 2 * tokens * self.model.b * self.model.layer_parameters
        return flops / (self.flops * self.devices) / 3600

    def to_dict(self) -> dict[str, Any]:
        """The plan for JSON."""
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
        """Mean length of passages that are only embedded, in this part of the steps."""
        length, curriculum = self.corpus.passage_tokens, self.recipe.batch.passage_tokens
        if not curriculum or begin >= end:
            return length
        ends = [*(part.after for part in curriculum[1:]), 1.0]
        tokens = sum(
            max(0.0, min(end, stop) - max(begin, part.after)) * min(length, part.tokens)
            for part, stop in zip(curriculum, ends, strict=True)
        )
        return tokens / (end - begin)

    def _batch(
        self,
        embedded_tokens: float,
        *,
        generating: bool = True,
        ranked: bool = False,
        scoring: bool = False,
    ) -> StepCost:
        """The mean batch of a stage, as if there were questions enough about every passage.

        Args:
            embedded_tokens: of a passage that is only embedded.
            generating: whether prompts are answered; without, they only retrieve.
            ranked: whether candidates come from the model's own index.
            scoring: whether the language model scores every candidate.
        """
        batch = self.recipe.batch
        hard = batch.candidates if ranked else batch.hard_negatives
        askers = 1 + batch.questions_per_passage * batch.candidates
        prompts = responses = queries = scored = passages = read = readers = 0.0
        for source in self.sources:
            drawn = batch.prompts * source.share
            length = source.prompt_tokens + source.response_tokens
            answered = drawn if generating else 0.0
            if source.retrieves:
                chosen = drawn * self._answered_share
                asked = drawn + chosen * (askers - 1)
                answered = chosen * askers if generating else 0.0
                queries += (asked - answered) * source.prompt_tokens
                readers += answered
                scored += answered * batch.candidates * length if scoring else 0.0
                right = min(source.positives, batch.positives)
                passages += drawn * right + (chosen if ranked else drawn) * hard
                # The right ones, up to half, and its hard negatives; the rest are other prompts'.
                own = min(right, -(-batch.candidates // 2)) + hard
                read += chosen * min(own, batch.candidates)
            prompts += answered * length
            responses += answered * source.response_tokens
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
    def _answered_share(self) -> float:
        """Of the prompts that retrieve: `generate` is a number of those."""
        batch = self.recipe.batch
        retrieving = batch.prompts * sum(
            source.share for source in self.sources if source.retrieves
        )
        if batch.generate is None or batch.generate >= retrieving:
            return 1.0
        return batch.generate / retrieving
