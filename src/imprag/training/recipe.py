"""The schema of recipes: everything that decides a training run.

Each key is documented at its field: what it does, its default, and when to change it. The
reference page is generated from these strings (`imprag.training.reference`). "Paper" is arXiv
2506.02279; keys marked "beyond the paper" are off by default.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    model_validator,
)

from imprag.errors import ImpRAGError
from imprag.training.lora_settings import LoraSettings
from imprag.training.model_settings import ModelSettings
from imprag.training.objectives import ObjectiveSettings
from imprag.training.samplers.base import check_sampler
from imprag.training.sources import (
    Location,
    Section,
    Source,
    SyntheticSource,
    TaskSource,
    locate,
)
from imprag.training.trainer_arguments import decides_training, trainer_arguments

LONGEST_TEXT = 1024
"""The most tokens of a prompt or a response in training."""

_Fraction = Annotated[float, Field(ge=0, le=1)]


def _several(value: Any) -> Any:
    """A list of one for a single name, and a tuple for a list, as strict validation needs."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _locate_in_task(value: str, info: ValidationInfo) -> str:
    """``TASK=FILE`` or ``FILE`` with the path resolved."""
    task, equals, file = value.rpartition("=")
    return task + equals + locate(file, info)


class TeacherSettings(Section):
    """The text retriever whose ranks label training prompts (paper, section 3, warmup)."""

    retriever: Location = "all-minilm-l6-v2"
    """`all-minilm-l6-v2` (in a package), `bm25`, or a folder or name on the hub of a bi-encoder
    (paper: `facebook/contriever-msmarco`). It may also be the folder of a model trained here."""

    hard_negatives: tuple[PositiveInt, PositiveInt] = (10, 50)
    """First and last rank of the pool that hard negatives are sampled from (paper: 10 to 50). The
    ranks between the positives and the pool are neither positives nor negatives."""


class LengthStep(Section):
    """A step of a length curriculum: the longest passage from a point of training on."""

    after: _Fraction
    """Fraction of training after which the limit applies; 0 for the first step."""

    tokens: Annotated[int, Field(ge=8)]
    """Truncates passages that are only embedded to this many tokens."""


class BatchSettings(Section):
    """Size and content of a batch. All numbers are totals over all devices."""

    sampler: str = "mixture"
    """Draws the batches, by seed and step: `mixture`, or a plug-in's name. It says which of the
    other keys have an effect."""

    examples: PositiveInt = 8
    """Prompts in a batch; the paper gives no figure. With `grid`, this key has no effect."""

    grid: tuple[PositiveInt, PositiveInt] | None = None
    """Rows and columns of a grid of prompts: entities × relations, or articles × questions, so that
    each prompt's passage is a hard negative for its neighbours. Use it if examples have an entity
    and a relation. By default prompts are sampled one by one (paper)."""

    grids: PositiveInt = 1
    """Grids in a batch, each from one source, sampled by the weights. Raise it to fill a GPU or to
    mix prompt formats."""

    others: NonNegativeInt = 0
    """Prompts in a batch from the sources that fill no grids. It must be positive if there are such
    sources, and 0 otherwise."""

    positives: PositiveInt = 5
    """The most positives of each prompt in a batch: gold passages, or the teacher's first ranks
    (paper: 5)."""

    hard_negatives: NonNegativeInt = 10
    """Hard negatives of each prompt, sampled from the teacher's pool (paper: up to 10). Set it to 0
    to train without a teacher, with `positives: gold` and a grid."""

    candidates: PositiveInt = 3
    """Passages that each prompt reads in training (paper: 10, as k). They take most of the time of
    a step."""

    generate: NonNegativeInt | None = None
    """The number of retrieving prompts in a batch that are generated, neighbours in a grid; the
    others only retrieve, which is cheap. By default all are generated (paper)."""

    questions_per_passage: NonNegativeInt = 0
    """Extra questions generated per candidate passage, from the same source and of the same
    relation first; they share its candidate set. Each candidate is then a positive of one prompt
    and a hard negative of the others, and a generated prompt costs one passage instead of a whole
    candidate set (beyond the paper)."""

    cross_batch_memory: NonNegativeInt = 0
    """Cross-batch memory: passages of this many earlier batches are additional negatives, with the
    embeddings of their own step. By default there is none. Use it late in training: from the first
    step on it prevented learning (beyond the paper)."""

    passage_tokens: tuple[LengthStep, ...] = ()
    """A length curriculum for passages that are only embedded: it truncates them to a few tokens at
    first and to more later. It halves the cost of a step if titles are at both ends of a passage.
    By default the limit is `max_passage_tokens` (beyond the paper)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        points = [step.after for step in self.passage_tokens]
        if points and (points[0] != 0 or sorted(set(points)) != points):
            raise ImpRAGError("passage_tokens must begin with after: 0 and ascend")
        if self.grids > 1 and self.grid is None:
            raise ImpRAGError(f"grids is {self.grids}, but there is no batch.grid")
        if self.generate is not None and self.generate > self.prompts:
            raise ImpRAGError(
                f"generate is {self.generate}, but a batch has {self.prompts} prompts"
            )
        return self

    @property
    def prompts(self) -> int:
        """Prompts of a batch."""
        if self.grid is None:
            return self.examples
        rows, columns = self.grid
        return self.grids * rows * columns + self.others


class BottomStage(Section):
    """A cheap stage before warmup, in which layers 0..b learn to retrieve (beyond the paper)."""

    fraction: _Fraction = 0.3
    """Share of training."""

    generate_every: NonNegativeInt = 0
    """Every n-th step also generates, as in warmup. By default no step does, and the layers above b
    lose the ability to read; 4 to 10 preserve it."""


class WarmupStage(Section):
    """Training with the teacher's or gold labels (paper, section 3, equation 3)."""

    fraction: _Fraction = 0.3
    """Share of training (paper: 3 of 10 epochs). The rest after `bottom` and `warmup` is
    self-distillation; where the two sum to 1 there is none."""

    objective: ObjectiveSettings = "nce"
    """The retrieval objective, of `bottom` too: a name, or `{name: NAME}` with its settings.
    Plug-ins add others."""


class SelfDistillationStage(Section):
    """Training with the language model's own preferences (paper, section 3, equations 4 to 6)."""

    objective: ObjectiveSettings = "self_distillation"
    """The retrieval objective, as in `warmup`. `{name: self_distillation, target_temperature: 1.0,
    score_temperature: 1.0}` also gives the temperatures of the softmax over log P_LM and of that
    over the scores; the paper gives no figures."""


class StageSettings(Section):
    """The stages in order. Each minimises J = J_gen + λ · J_ret."""

    bottom: BottomStage | None = None
    warmup: WarmupStage = WarmupStage()
    self_distillation: SelfDistillationStage = SelfDistillationStage()

    mine_every: PositiveInt | None = None
    """From warmup on, mines hard negatives with the model in training, at the start of each stage
    and every this many steps. Prompts read the first ranks with their positives, and in warmup the
    ranks are hard negatives. Each mining embeds the whole corpus. By default candidates come from
    the teacher (paper)."""

    retrieval_weight: PositiveFloat = 1.0
    """λ; the paper gives no figure. Raise it if retrieval stops improving while the generation loss
    is much larger than the retrieval loss."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        before = self.warmup.fraction + (self.bottom.fraction if self.bottom else 0)
        if before > 1 + 1e-9:
            raise ImpRAGError(f"the fractions of bottom and warmup sum to {before:g}, over 1")
        return self


class TrainSettings(Section):
    """Length of the run, and which weights are trained."""

    steps: PositiveInt | None = None
    """Number of optimizer steps. Give either `steps` or `epochs`; without a section `train`, the
    run has 10 epochs."""

    epochs: PositiveFloat | None = None
    """Number of epochs; an epoch samples as many examples as all sources have (paper: 10)."""

    bottom_learning_rate: PositiveFloat | None = None
    """Learning rate of layers 0..b, which retrieve. By default it is `trainer.learning_rate`; twice
    that often works better."""

    freeze_embeddings: bool = False
    """Freezes the token embeddings, and the head if it is tied to them. Use it for small models,
    where they are a fifth of the weights and a third of a step's time (beyond the paper)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            both = "none" if self.steps is None else "both"
            raise ImpRAGError(f"give one of steps and epochs, not {both}")
        return self


class EvaluationSettings(Section):
    """Evaluation during training (paper, section 3: 1,000 NQ dev questions). It runs every
    `trainer.eval_steps` steps. The checkpoint with the best `trainer.metric_for_best_model`,
    averaged over the tasks, becomes the model."""

    data: Location | None = None
    """A benchmark folder, as in `imprag eval --data`."""

    tasks: tuple[Annotated[str, AfterValidator(_locate_in_task)], ...] = ()
    """Tasks of the benchmark, files, or `TASK=FILE`, as in `imprag eval --tasks`."""

    split: str = "dev"
    """Split of the benchmark or of a data set on the hub."""

    limit: PositiveInt | None = 200
    """Evaluates at most this many examples of each task."""

    corpus: Location | None = None
    """The corpus to retrieve from: `split` takes the benchmark's passages about the entities of the
    split, which are embedded in minutes; otherwise a name or path. By default it is the recipe's
    corpus."""

    patience: PositiveInt | None = None
    """Stops training after this many evaluations without improvement. By default training does not
    stop early."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.data is None and not self.tasks:
            raise ImpRAGError("evaluation has no questions; give it data or tasks")
        return self


System = Literal["imprag", "ra-it", "ra-dit", "ra-dit-lm"]


class Recipe(Section):
    """A whole recipe; `configs/` holds examples."""

    system: System = "imprag"
    """What is trained: `imprag`, or one of the paper's baselines, which put passages into the
    context. `ra-it` retrieves with the teacher; `ra-dit` first fine-tunes the teacher, a
    bi-encoder, by the objective of self-distillation; `ra-dit-lm` instead trains layers 0..b of the
    language model as a separate retriever, through both stages. A separate retriever learns with
    `train.bottom_learning_rate`. Use them to compare systems on the same data."""

    model: ModelSettings = ModelSettings()

    corpus: Annotated[tuple[Location, ...], Field(min_length=1), BeforeValidator(_several)] = (
        "default",
    )
    """The passages: a built-in corpus (`default` or one of its parts), a path, or a list of these,
    which are joined."""

    data: Annotated[tuple[Source, ...], Field(min_length=1)]
    teacher: TeacherSettings = TeacherSettings()
    batch: BatchSettings = BatchSettings()
    stages: StageSettings = StageSettings()
    train: TrainSettings = TrainSettings(epochs=10)

    trainer: Annotated[dict[str, Any], AfterValidator(trainer_arguments)] = Field(
        default={}, validate_default=True
    )
    """Arguments of transformers' `TrainingArguments`: optimizer, learning rate and its schedule,
    precision, seed, gradient accumulation, saving and logging. The error for an argument that
    ImpRAG decides itself gives the reason."""

    lora: LoraSettings | None = None
    evaluation: EvaluationSettings | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_sampler(self.batch)
        longest = max((step.tokens for step in self.batch.passage_tokens), default=0)
        if longest > self.model.max_passage_tokens:
            raise ImpRAGError(
                f"batch.passage_tokens goes up to {longest}, but model.max_passage_tokens is "
                f"{self.model.max_passage_tokens}"
            )
        first, last = self.teacher.hard_negatives
        if not self.batch.positives < first <= last:
            raise ImpRAGError(
                f"teacher.hard_negatives must be two ascending ranks after the "
                f"{self.batch.positives} positives, not [{first}, {last}]"
            )
        if self.system != "imprag":
            self._check_baseline()
        for source in self.data:
            if isinstance(source, SyntheticSource) and source.corpus not in (None, *self.corpus):
                raise ImpRAGError(
                    f"{source.synthetic} should be made from {source.corpus}, which is none of the "
                    f"recipe's corpora: {', '.join(self.corpus)}"
                )
        if self.lora and self.lora.held and not self.model.start:
            raise ImpRAGError(
                f"lora.{self.lora.held[0]}: `trained: false` keeps the weights of model.start; "
                "give it, or leave the group out"
            )
        if any(isinstance(one, TaskSource) and one.positives == "hops" for one in self.data):
            before = self.stages.warmup.fraction
            before += self.stages.bottom.fraction if self.stages.bottom else 0
            if not self.model.separator:
                raise ImpRAGError("positives: hops needs model.retrieve: on:SEPARATOR")
            if before < 1 - 1e-9 or self.stages.mine_every:
                raise ImpRAGError(
                    "the second retrieval of positives: hops learns by labels alone: set "
                    "stages.warmup.fraction to 1, and leave out stages.mine_every"
                )
        if self.trainer["dataloader_num_workers"] and self.stages.mine_every:
            raise ImpRAGError(
                "stages.mine_every needs the model, which data loader workers do not have: set "
                "trainer.dataloader_num_workers to 0, or stages.mine_every to null"
            )
        return self

    def _check_baseline(self) -> None:
        """Refuse what has no effect in a baseline."""
        unused = {
            "stages.bottom": self.stages.bottom,
            "stages.mine_every": self.stages.mine_every,
            "model.start": self.model.start if self.system != "ra-it" else None,
        }
        if given := [key for key, value in unused.items() if value is not None]:
            raise ImpRAGError(f"leave out {given[0]}: it has no effect on the system {self.system}")
        if any(isinstance(one, TaskSource) and one.positives == "hops" for one in self.data):
            raise ImpRAGError(
                f"positives: hops retrieves at later tokens, which the system {self.system} cannot"
            )
        if self.system == "ra-dit" and self.teacher.retriever == "bm25":
            raise ImpRAGError(
                "the system ra-dit fine-tunes its teacher, which BM25 does not allow; set "
                "teacher.retriever to a bi-encoder"
            )
        if self.system == "ra-dit-lm" and self.lora and self.lora.bottom is None:
            raise ImpRAGError("the system ra-dit-lm trains layers 0..b: give lora.bottom, too")

    @property
    def seed(self) -> int:
        """The seed of all sampling."""
        seed: int = self.trainer["seed"]
        return seed

    @property
    def precision(self) -> Literal["bf16", "fp32"]:
        """Precision that layers compute in; trained weights are float32."""
        return "bf16" if self.trainer["bf16"] else "fp32"

    @property
    def accumulation(self) -> int:
        """Batches per optimizer step."""
        count: int = self.trainer["gradient_accumulation_steps"]
        return count

    def to_yaml(self) -> str:
        """The recipe with all its keys, as in a run folder's ``recipe.yaml``."""
        content = self.model_dump(mode="json")
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)

    def steps(self, examples: int) -> int:
        """Number of optimizer steps for this number of training examples."""
        if self.train.steps is not None:
            return self.train.steps
        assert self.train.epochs is not None
        return math.ceil(self.train.epochs * examples / (self.batch.prompts * self.accumulation))

    def fingerprint(self) -> str:
        """Hash of all keys that affect the trained weights: not evaluation, saving or logging."""
        content = json.dumps(self._deciding(), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def differences(self, other: "Recipe") -> list[str]:
        """Keys that affect the weights and differ in ``other``, as ``key: ours, not theirs``."""
        ours, theirs = dict(_flat(self._deciding())), dict(_flat(other._deciding()))
        return [
            f"{key}: {ours.get(key)!r}, not {theirs.get(key)!r}"
            for key in {**ours, **theirs}
            if ours.get(key) != theirs.get(key)
        ]

    def _deciding(self) -> dict[str, Any]:
        content = self.model_dump(mode="json", exclude={"evaluation"})
        content["trainer"] = {k: v for k, v in self.trainer.items() if decides_training(k)}
        return content


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dictionaries and lists under their dotted keys."""
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
