"""Recipes: everything that decides a training run, read from YAML and checked before it starts.

"Paper" in the descriptions is arXiv 2506.02279; what is marked "beyond the paper" is off unless
the recipe asks for it.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from imprag.corpus.library import BUILT_IN_CORPORA
from imprag.errors import ImpRAGError
from imprag.files import expand_home
from imprag.model.config import (
    FrozenPassages,
    ImpRAGConfig,
    PassageEncoding,
    PoolingPoint,
    RopePoint,
)
from imprag.tasks import TaskExamples, load_task, read_tasks
from imprag.tasks.factbook.build import MANIFEST
from imprag.tasks.self_supervised import VERIFICATION, verification
from imprag.training.architecture import num_layers
from imprag.training.recipe_file import apply_override, explain, read_yaml

LONGEST_TEXT = 1024
"""Tokens of a prompt or a response in training."""

_BUDGETS = {"train.steps", "train.epochs"}
_Fraction = Annotated[float, Field(ge=0, le=1)]
_BelowOne = Annotated[float, Field(ge=0, lt=1)]


def _locate(value: str, info: ValidationInfo) -> str:
    """A path seen from the recipe's folder, else from the working folder; names stay names."""
    value = str(expand_home(value)) if value.startswith("~") else value
    folder = (info.context or {}).get("folder")
    if folder is not None and value not in BUILT_IN_CORPORA:
        for place in (Path(folder) / value, Path(value)):
            if place.exists():
                return str(place.resolve())
    return value


Location = Annotated[str, AfterValidator(_locate)]
"""A path, or a name that is known to who reads it: a built-in one or one on the hub."""


def _several(value: Any) -> Any:
    """One name is a list of one, and lists are tuples, as strict validation asks."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _locate_in_task(value: str, info: ValidationInfo) -> str:
    """The path in ``TASK=FILE`` or ``FILE``."""
    task, equals, file = value.rpartition("=")
    return task + equals + _locate(file, info)


class Section(BaseModel):
    """A part of a recipe: immutable, with no key that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSettings(Section):
    """The model to train; the same names as in :class:`ImpRAGConfig`, which describes them.

    Attributes:
        base: name or path of the language model (``base_model`` there).
        start: a trained model of the same base, ``default`` or a folder, whose weights training
            begins with; with ``lora``, the adapters begin as near to them as their ranks allow. If
            not given, training begins with the base model.
        start_share: of the weights that training begins with, in the mean of these and the trained
            ones that is kept (Wortsman et al., 2022; beyond the paper). It keeps what ``start`` can
            do and the recipe does not ask for.
        b, t: layer boundaries (paper, section 2; b=7, t=19 for Llama-3.2-3B, t=23 for 8B, by
            Figure 2).
        k: passages per prompt at inference (paper, section 3: 10).
        max_passage_tokens: the paper's l_max, which it gives no figure for.
        passage_encoding, passage_template, pooling_point, rope, score_scale: open in the paper
            (``independent`` is its choice for stored passages, Table 6).
        frozen_passages: paper, Table 7.
        reading_score_weight: for answering; training reads all candidates alike.
    """

    base: Location = "smollm2-135m"
    start: Location | None = None
    start_share: _BelowOne = 0.0
    b: int = 7
    t: int = 20
    k: int = 3
    max_passage_tokens: int = 256
    passage_encoding: PassageEncoding = "independent"
    passage_template: str = "{title}\n{text}"
    pooling_point: PoolingPoint = "last"
    rope: RopePoint = "before"
    frozen_passages: FrozenPassages = "none"
    score_scale: float | None = None
    reading_score_weight: float = 0.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.to_config()
        if self.start_share and self.start is None:
            raise ImpRAGError("model.start_share needs model.start, which it is the share of")
        layers = num_layers(self.base)
        if layers is not None and self.t >= layers:
            raise ImpRAGError(
                f"t={self.t}, but {self.base} has {layers} layers: t can be {layers - 1} at most"
            )
        return self

    def to_config(self) -> ImpRAGConfig:
        """The configuration that is stored with the trained model."""
        settings = self.model_dump(exclude={"base", "start", "start_share"})
        return ImpRAGConfig(base_model=self.base, **settings)


class TaskSource(Section):
    """Training examples of one task (paper, section 3, data).

    Attributes:
        tasks: where they are: a benchmark folder made by ``imprag tasks build``, a file, or a data
            set on the Hugging Face hub.
        task: the task's name, as ``imprag tasks list`` shows it.
        split: of the benchmark or of the set on the hub; other files have none.
        weight: share of the drawn examples, relative to the other sources' weights.
        limit: at most so many examples, drawn by the seed (paper: 5,000 of each set).
        retrieval: whether passages are retrieved for it; if not given, as the task says (paper:
            for the knowledge-intensive tasks only).
        positives: passages that the ``teacher`` ranks first (paper), or ``gold`` provenance
            (beyond the paper).
        wordings: further templates, as a task's own with ``{input}``, which take turns with it
            (beyond the paper).
        verify: ask whether an answer is right, which it is half of the time, instead of asking for
            it (beyond the paper, see `imprag.tasks.self_supervised`).
    """

    tasks: Location
    task: str
    split: str = "train"
    weight: PositiveFloat = 1.0
    limit: PositiveInt | None = None
    retrieval: bool | None = None
    positives: Literal["teacher", "gold"] = "teacher"
    wordings: tuple[str, ...] = ()
    verify: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        replace(load_task(self.task), wordings=self.wordings)
        if self.verify and self.wordings:
            raise ImpRAGError("verify has wordings of its own; give it none")
        return self

    def read(self, known: dict[tuple[str, ...], TaskExamples] | None = None) -> TaskExamples:
        """All examples of the source, without its limit.

        Args:
            known: examples that sources have read before; what this one reads is added.

        Raises:
            ImpRAGError: they are missing or not in their format.
        """
        known = {} if known is None else known
        place = (self.tasks, self.task, self.split)
        if place not in known:
            if self.is_benchmark:
                (known[place],) = read_tasks([self.task], data=self.tasks, split=self.split)
            else:
                (known[place],) = read_tasks([f"{self.task}={self.tasks}"], split=self.split)
        found = known[place]
        if self.verify:
            made = list(verification(found.examples))
            return replace(found, task=VERIFICATION, examples=made)
        return replace(found, task=replace(found.task, wordings=self.wordings))

    @property
    def is_benchmark(self) -> bool:
        """Whether ``tasks`` is a benchmark folder."""
        return (Path(self.tasks) / MANIFEST).is_file()

    @property
    def retrieves(self) -> bool:
        """Whether passages are retrieved for these examples."""
        return load_task(self.task).retrieval if self.retrieval is None else self.retrieval


Synthetic = Literal[
    "phrase_denoising",
    "sentence_generation",
    "corpus_text",
    "cloze",
    "lookup",
    "question",
    "assertion",
    "keywords",
    "title",
    "mention",
    "statement",
]


class SyntheticSource(Section):
    """Examples made from the corpus' passages (paper, section 3, data).

    Attributes:
        synthetic: the paper's two tasks, and its plain corpus text (about 10 % of training), all
            without retrieval; the others retrieve the passages that they are made from (beyond the
            paper, see `imprag.tasks.self_supervised`).
        corpus: which of the recipe's corpora the passages are of; if not given, of any.
        weight, limit: as for :class:`TaskSource`.
    """

    synthetic: Synthetic
    corpus: Location | None = None
    weight: PositiveFloat = 1.0
    limit: PositiveInt | None = None

    @property
    def retrieves(self) -> bool:
        """Whether passages are retrieved for these examples."""
        return load_task(self.synthetic).retrieval


def _source_kind(value: Any) -> str:
    synthetic = "synthetic" in value if isinstance(value, Mapping) else hasattr(value, "synthetic")
    return "synthetic source" if synthetic else "task source"


Source = Annotated[
    Annotated[TaskSource, Tag("task source")] | Annotated[SyntheticSource, Tag("synthetic source")],
    Discriminator(_source_kind),
]


class TeacherSettings(Section):
    """The text retriever whose ranks label training prompts (paper, section 3, warmup).

    Attributes:
        retriever: ``all-minilm-l6-v2``, ``bm25``, or a bi-encoder's folder or name on the hub
            (paper: ``facebook/contriever-msmarco``).
        positives: so many first ranks are pseudo-positives (paper: 5).
        hard_negatives: first and last rank of the pool of hard negatives (paper: 10 to 50).
    """

    retriever: Location = "all-minilm-l6-v2"
    positives: PositiveInt = 5
    hard_negatives: tuple[PositiveInt, PositiveInt] = (10, 50)

    @model_validator(mode="after")
    def _check(self) -> Self:
        first, last = self.hard_negatives
        if not self.positives < first <= last:
            raise ImpRAGError(
                f"hard_negatives must be two ranks behind the {self.positives} positives, the "
                f"first one first, not [{first}, {last}]"
            )
        return self


class LengthStep(Section):
    """Part of a length curriculum: the longest passage from a point of training on.

    Attributes:
        after: share of training that is over, 0 to 1.
        tokens: the limit from there on.
    """

    after: _Fraction
    tokens: Annotated[int, Field(ge=8)]


class BatchSettings(Section):
    """What makes a batch. Numbers are over all devices together.

    Attributes:
        kind: ``examples`` draws prompts one by one (paper). ``grid`` crosses entities and
            relations, or articles and questions, so that every cell's passage is a hard negative
            for the others (beyond the paper).
        examples: prompts of a batch of kind ``examples``; the paper gives no figure.
        grid: rows and columns of a grid.
        grids: of a batch of kind ``grid``, each of a source that is drawn by the weights.
        alike_rows: entities whose names the base model's token embeddings put side by side stand in
            one grid, so that each is a hard negative for the others; else they are drawn at random
            (beyond the paper).
        others: prompts of the sources that fill no grid, beside the grids; all of them are
            retrieval-free or have no place in one.
        positives: right passages of each prompt in a batch, at most (paper: 5).
        answer_check: a passage that contains an answer is no negative (beyond the paper).
        hard_negatives: drawn for each prompt from its pool (paper: up to 10).
        candidates: passages that each prompt reads in training (paper: 10, as k).
        generate: so many of a batch's retrieving prompts are answered, neighbours in a grid, the
            others only retrieve; all of them if not given (paper).
        same_passage: for each prompt that is answered, so many more of its source about the same
            passage are answered, too, where there are any: the passage is most of the work (beyond
            the paper).
        about_candidates: of each passage that a prompt reads, so many questions of its source are
            answered, too, of the same relation where there are any; they read the same passages, of
            which each is right for one prompt and hard for the others (beyond the paper).
        memory: the passages of so many batches before are negatives too, with the embeddings that
            they had then (beyond the paper).
        passage_tokens: a length curriculum; none is ``max_passage_tokens`` throughout (beyond the
            paper).
    """

    kind: Literal["examples", "grid"] = "examples"
    examples: PositiveInt = 8
    grid: tuple[PositiveInt, PositiveInt] = (6, 6)
    grids: PositiveInt = 1
    alike_rows: bool = False
    others: NonNegativeInt = 0
    positives: PositiveInt = 5
    answer_check: bool = True
    hard_negatives: NonNegativeInt = 10
    candidates: PositiveInt = 3
    generate: NonNegativeInt | None = None
    same_passage: NonNegativeInt = 0
    about_candidates: NonNegativeInt = 0
    memory: NonNegativeInt = 0
    passage_tokens: tuple[LengthStep, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        points = [step.after for step in self.passage_tokens]
        if points and (points[0] != 0 or sorted(set(points)) != points):
            raise ImpRAGError("passage_tokens must begin with after: 0 and go upwards")
        if self.alike_rows and self.kind != "grid":
            raise ImpRAGError("alike_rows is for grids, but batch.kind is examples")
        if self.grids > 1 and self.kind != "grid":
            raise ImpRAGError(f"grids is {self.grids}, but batch.kind is examples")
        if self.generate is not None and self.generate > self.prompts:
            raise ImpRAGError(
                f"generate is {self.generate}, but a batch has {self.prompts} prompts"
            )
        return self

    @property
    def prompts(self) -> int:
        """Prompts of a batch."""
        if self.kind == "examples":
            return self.examples
        rows, columns = self.grid
        return self.grids * rows * columns + self.others


class BottomStage(Section):
    """A cheap stage before warmup: layers 0..b learn to retrieve (beyond the paper).

    Attributes:
        fraction: of the training.
        generate_every: every n-th step generates as in warmup; 0 is never.
    """

    fraction: _Fraction = 0.3
    generate_every: NonNegativeInt = 0


class ScoreDistillation(Section):
    """A further loss of ``bottom`` and ``warmup``: the teacher's scores (beyond the paper).

    Every prompt that retrieves learns from them over all passages of the batch.

    Attributes:
        weight: relative to equation 3.
        target_temperature, score_temperature: of the teacher's and the model's softmax. Cosines
            want a low one.
    """

    weight: PositiveFloat = 1.0
    target_temperature: PositiveFloat = 0.05
    score_temperature: PositiveFloat = 1.0


class WarmupStage(Section):
    """Training with the teacher's labels (paper, section 3, equation 3).

    Attributes:
        fraction: of the training (paper: 3 of 10 epochs). What ``bottom`` and ``warmup`` leave is
            self-distillation.
        score_distillation: if given, is added to equation 3.
        refresh_steps: every so many steps, the model's own index ranks the corpus anew for the
            prompts that read until then. Beside the right passages they read the first ranks,
            which are hard negatives, too. If not given, the teacher's are (paper).
    """

    fraction: _Fraction = 0.3
    score_distillation: ScoreDistillation | None = None
    refresh_steps: PositiveInt | None = None


class SelfDistillationStage(Section):
    """Training with the language model's own preferences (paper, section 3, equations 4 to 6).

    Attributes:
        target_temperature: τ_t, of the softmax over log P_LM; the paper gives no figure.
        score_temperature: τ_r, of the softmax over the scores; the paper gives no figure.
        refresh_steps: as in ``warmup``; the candidates are the right passages and the first ranks.
    """

    target_temperature: PositiveFloat = 1.0
    score_temperature: PositiveFloat = 1.0
    refresh_steps: PositiveInt | None = None


class StageSettings(Section):
    """The stages, in their order, and J = J_gen + λ · J_ret, which all of them train.

    Attributes:
        bottom, warmup, self_distillation: the stages.
        retrieval_weight: λ; the paper gives no figure.
    """

    bottom: BottomStage | None = None
    warmup: WarmupStage = WarmupStage()
    self_distillation: SelfDistillationStage = SelfDistillationStage()
    retrieval_weight: PositiveFloat = 1.0

    @property
    def refreshes(self) -> list[str]:
        """The keys by which the recipe asks for ranks of the model's own index."""
        asked = {
            "warmup": self.warmup.refresh_steps,
            "self_distillation": self.self_distillation.refresh_steps,
        }
        return [f"stages.{name}.refresh_steps" for name, steps in asked.items() if steps]

    @model_validator(mode="after")
    def _check(self) -> Self:
        before = self.warmup.fraction + (self.bottom.fraction if self.bottom else 0)
        if before > 1 + 1e-9:
            raise ImpRAGError(f"the fractions of bottom and warmup sum to {before:g}, over 1")
        return self


class OptimizerSettings(Section):
    """AdamW and its schedule; the paper gives no figures.

    Attributes:
        learning_rate: at its peak.
        bottom_learning_rate: of layers 0..b, if another one.
        weight_decay: on matrices.
        betas: of the moments.
        warmup_steps: of linear growth at the beginning.
        schedule: what follows.
        max_grad_norm: gradients are clipped to it.
    """

    learning_rate: PositiveFloat = 1e-5
    bottom_learning_rate: PositiveFloat | None = None
    weight_decay: NonNegativeFloat = 0.0
    betas: tuple[_BelowOne, _BelowOne] = (0.9, 0.999)
    warmup_steps: NonNegativeInt = 0
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    max_grad_norm: PositiveFloat = 1.0


class TrainSettings(Section):
    """Length and manner of the run.

    Attributes:
        steps, epochs: how long, in one of these; an epoch goes through as many examples as all
            sources have (paper: 10 epochs).
        precision: ``bf16`` computes in bfloat16 and keeps the weights in float32.
        seed: of all that is drawn.
        gradient_accumulation: batches per step of the optimizer.
        gradient_checkpointing: compute layers a second time rather than keep their activations.
        freeze_embeddings: keep the token embeddings, and the head where it is tied to them, as they
            are; they are a fifth of a small model and a third of its step (beyond the paper).
        save_steps: write a checkpoint every so many steps.
        keep_checkpoints: delete older ones but the best.
        logging_steps: write a line of ``metrics.jsonl`` every so many steps.
        data_workers: processes that make batches ahead; a GPU outruns one alone. They change
            nothing in the batches.
    """

    steps: PositiveInt | None = None
    epochs: PositiveFloat | None = None
    precision: Literal["bf16", "fp32"] = "bf16"
    seed: NonNegativeInt = 0
    gradient_accumulation: PositiveInt = 1
    gradient_checkpointing: bool = False
    freeze_embeddings: bool = False
    save_steps: PositiveInt = 500
    keep_checkpoints: PositiveInt = 2
    logging_steps: PositiveInt = 10
    data_workers: NonNegativeInt = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            both = "none" if self.steps is None else "both"
            raise ImpRAGError(f"give one of steps and epochs, not {both}")
        return self


class LoraGroup(Section):
    """An adapter on one group of layers (beyond the paper).

    Attributes:
        rank: of the two factors.
        alpha: the adapter is scaled by alpha / rank.
        trained: whether it is trained; else it stays as ``model.start`` brings it.
        targets: names of the projections that it adapts.
    """

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    trained: bool = True
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )


class LoraSettings(Section):
    """Adapters instead of full fine-tuning (beyond the paper). A group without one is frozen.

    Attributes:
        bottom: of layers 0..b.
        reading: of layers b+1..t.
        top: of the layers above t.
        norms: whether the norms of adapted groups are trained too, as they are; of ``top`` also the
            one after the last layer.
        dropout: on the adapters' inputs.
    """

    bottom: LoraGroup | None = None
    reading: LoraGroup | None = None
    top: LoraGroup | None = None
    norms: bool = False
    dropout: _BelowOne = 0.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        groups = [group for group in (self.bottom, self.reading, self.top) if group is not None]
        if not groups:
            raise ImpRAGError("lora adapts no layers; give bottom, reading or top, or no lora")
        if not any(group.trained for group in groups):
            raise ImpRAGError("lora trains no layers; leave one group trained")
        return self


class EvaluationSettings(Section):
    """Evaluation while training, and what comes of it (paper, section 3: 1,000 NQ dev questions).

    Attributes:
        data: a benchmark folder, as in ``imprag eval --data``.
        tasks: tasks of it, files, or ``TASK=FILE``, as in ``imprag eval --tasks``.
        split: of the benchmark or of a set on the hub.
        limit: at most so many examples of each task.
        corpus: ``split`` takes the benchmark's passages about the entities of ``split``; else a
            corpus's name or path; if not given, the recipe's corpus.
        steps: evaluate every so many steps.
        metric: as named in ``results.json``; the checkpoint with the best mean over the tasks is
            the best.
        patience: stop after so many evaluations without a better one; never if not given.
    """

    data: Location | None = None
    tasks: tuple[Annotated[str, AfterValidator(_locate_in_task)], ...] = ()
    split: str = "dev"
    limit: PositiveInt | None = 200
    corpus: Location | None = None
    steps: PositiveInt = 500
    metric: str = "exact_match"
    patience: PositiveInt | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.data is None and not self.tasks:
            raise ImpRAGError("evaluation has nothing to ask; give it data or tasks")
        return self


class Recipe(Section):
    """A whole recipe; ``configs/`` holds examples.

    Attributes:
        model: the model and its layer boundaries.
        corpus: the passages: a name or path that :func:`imprag.corpus.load_corpus` takes, or
            several, which are joined.
        data: the mixture of training examples.
        teacher, batch, stages, optimizer, train: see there.
        lora: if given, adapters are trained; else all weights (paper).
        evaluation: if given, the model is evaluated while it trains.
    """

    model: ModelSettings = ModelSettings()
    corpus: Annotated[tuple[Location, ...], Field(min_length=1), BeforeValidator(_several)] = (
        "default",
    )
    data: Annotated[tuple[Source, ...], Field(min_length=1)]
    teacher: TeacherSettings = TeacherSettings()
    batch: BatchSettings = BatchSettings()
    stages: StageSettings = StageSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    train: TrainSettings = TrainSettings(epochs=10)
    lora: LoraSettings | None = None
    evaluation: EvaluationSettings | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        longest = max((step.tokens for step in self.batch.passage_tokens), default=0)
        if longest > self.model.max_passage_tokens:
            raise ImpRAGError(
                f"batch.passage_tokens goes up to {longest}, but model.max_passage_tokens is "
                f"{self.model.max_passage_tokens}"
            )
        for source in self.data:
            if isinstance(source, SyntheticSource) and source.corpus not in (None, *self.corpus):
                raise ImpRAGError(
                    f"{source.synthetic} is to be made from {source.corpus}, which is none of the "
                    f"recipe's corpora: {', '.join(self.corpus)}"
                )
        if self.stages.warmup.score_distillation and self.teacher.retriever == "bm25":
            raise ImpRAGError(
                "stages.warmup.score_distillation needs the scores of a bi-encoder: set "
                "teacher.retriever to all-minilm-l6-v2, or to a folder or a name on the hub"
            )
        if self.train.data_workers and self.stages.refreshes:
            raise ImpRAGError(
                f"with {self.stages.refreshes[0]}, batches need the model, which "
                "train.data_workers have not: set one of them to 0 or null"
            )
        return self

    def to_yaml(self) -> str:
        """The recipe with all its keys, as in a run folder's ``recipe.yaml``."""
        content = self.model_dump(mode="json")
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)

    def steps(self, examples: int) -> int:
        """Steps of the optimizer in all, for so many training examples."""
        if self.train.steps is not None:
            return self.train.steps
        assert self.train.epochs is not None
        per_step = self.batch.prompts * self.train.gradient_accumulation
        return math.ceil(self.train.epochs * examples / per_step)

    def fingerprint(self) -> str:
        """Names all that decides the training: not evaluation, saving and logging, nor a mean."""
        content = json.dumps(self._deciding(), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def differences(self, other: "Recipe") -> list[str]:
        """What decides the training and is not the same in ``other``: ``key: ours, not theirs``."""
        ours, theirs = dict(_flat(self._deciding())), dict(_flat(other._deciding()))
        return [
            f"{key}: {ours.get(key)!r}, not {theirs.get(key)!r}"
            for key in {**ours, **theirs}
            if ours.get(key) != theirs.get(key)
        ]

    def _deciding(self) -> dict[str, Any]:
        bystanders = {"save_steps", "keep_checkpoints", "logging_steps", "data_workers"}
        exclude: dict[str, Any] = {
            "evaluation": True,
            "train": bystanders,
            "model": {"start_share"},
        }
        return self.model_dump(mode="json", exclude=exclude)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: a YAML file. Relative paths in it are seen from its folder, and where nothing is
            there, from the working folder.
        overrides: ``key=value`` with a dotted key and a value in YAML: ``model.k=5``,
            ``data.0.weight=2``, ``lora=null``. ``train.steps`` and ``train.epochs`` take the place
            of each other.

    Raises:
        ImpRAGError: the file is missing or no YAML, or a key or value is wrong; the message names
            the key and the value, and for an unknown key the nearest one that there is.
    """
    path = expand_home(path)
    content = read_yaml(path)
    for override in overrides:
        key = apply_override(content, override)
        if key in _BUDGETS:
            for other in _BUDGETS - {key}:
                content["train"].pop(other.removeprefix("train."), None)
    try:
        # In JSON's strict mode, true is no number and 3 is no text, but lists become tuples.
        return Recipe.model_validate_json(
            json.dumps(content, default=str), strict=True, context={"folder": path.parent}
        )
    except ValidationError as error:
        raise ImpRAGError(f"{path}: {explain(error, Recipe)}") from error


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dictionaries and lists under their dotted keys."""
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
