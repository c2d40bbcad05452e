"""The schema of recipes: everything that decides a training run.

Every key is documented at its field: what it does, and when to change it. The reference page is
made from these (`imprag.training.reference`). "Paper" is arXiv 2506.02279; what is marked
"beyond the paper" is off unless a recipe asks for it.
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
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    model_validator,
)

from imprag.errors import ImpRAGError
from imprag.model.config import FrozenPassages, ImpRAGConfig, PassageEncoding
from imprag.training.objectives import ObjectiveSettings
from imprag.training.samplers.base import check_sampler
from imprag.training.sources import Location, Section, Source, SyntheticSource, locate
from imprag.training.trainer_arguments import decides_training, trainer_arguments

LONGEST_TEXT = 1024
"""Tokens of a prompt or a response in training."""

_Fraction = Annotated[float, Field(ge=0, le=1)]


def _several(value: Any) -> Any:
    """One name is a list of one, and lists are tuples, as strict validation asks."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _locate_in_task(value: str, info: ValidationInfo) -> str:
    """The path in ``TASK=FILE`` or ``FILE``."""
    task, equals, file = value.rpartition("=")
    return task + equals + locate(file, info)


class ModelSettings(Section):
    """The model to train. All keys but `base` and `start` are stored with it in `imprag.json`."""

    base: Location = "smollm2-135m"
    """The language model: a name on the Hugging Face hub or a folder. The default is in the package
    `smollm2-135m` and needs no download."""

    start: Location | None = None
    """A trained model whose weights training starts from: `default` or a folder; its base must be
    `base`. With `lora`, the adapters start from the largest singular values of its difference from
    the base, so full fine-tuning can be made small. By default training starts from the base model
    (beyond the paper)."""

    b: int = 7
    """The layer whose query and key states are the embeddings. Layers 0..b retrieve, and layer b is
    the first that reads passages (paper: 7)."""

    t: int = 20
    """Last layer that reads passages (paper: 19 of 28 for Llama-3.2-3B, 23 of 32 for 8B). Raise it
    if answers are wrong although the right passage was retrieved; stored passages get larger."""

    k: int = 3
    """Passages that a prompt retrieves when it is answered (paper: 10)."""

    max_passage_tokens: int = 256
    """Tokens after which a passage is cut: the paper's l_max, which it gives no figure for."""

    passage_encoding: PassageEncoding = "independent"
    """How the passages of a prompt are encoded (paper, Table 6): `independent` encodes each one
    from position 0, so that its keys and values can be stored; `segmented` numbers positions
    through all of them; `full` lets later passages attend to earlier ones."""

    passage_template: str = "{title}\n{text}"
    """The text of a passage. A title behind the text is close to the token whose key state is the
    passage's embedding, which helps retrieval by title."""

    frozen_passages: FrozenPassages = "none"
    """Encodes the passages that are read with the untrained base model (paper, Table 7): `kv` takes
    its keys and values, so that one store serves all models of the same base; `hidden_states` takes
    its hidden states; `none` trains the encoding too and answers best."""

    attention_score_bias: NonNegativeFloat = 0.0
    """Adds w · (s(q, p) − max s) to the attention logits of passage p's tokens when prompts are
    answered; training reads all candidates alike. Choose it on development data after training: 2
    for the built-in model (beyond the paper)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.to_config()
        return self

    def to_config(self) -> ImpRAGConfig:
        """The configuration that is stored with the trained model."""
        settings = self.model_dump(exclude={"base", "start"})
        return ImpRAGConfig(base_model=self.base, **settings)


class TeacherSettings(Section):
    """The text retriever whose ranks label training prompts (paper, section 3, warmup)."""

    retriever: Location = "all-minilm-l6-v2"
    """`all-minilm-l6-v2` (in a package), `bm25`, or a bi-encoder: a folder or a name on the hub
    (paper: `facebook/contriever-msmarco`)."""

    hard_negatives: tuple[PositiveInt, PositiveInt] = (10, 50)
    """First and last rank of the pool that hard negatives are drawn from (paper: 10 to 50). The
    ranks between the positives and the pool count neither as right nor as wrong."""


class LengthStep(Section):
    """Part of a length curriculum: the longest passage from a point of training on."""

    after: _Fraction
    """Share of training after which the limit holds; the first one is 0."""

    tokens: Annotated[int, Field(ge=8)]
    """The longest passage that is only embedded, in tokens."""


class BatchSettings(Section):
    """What makes a batch. All numbers are over all devices together."""

    sampler: str = "mixture"
    """Draws the batches, by seed and step: `mixture`, or a plug-in's name. It says which of the
    other keys have an effect."""

    examples: PositiveInt = 8
    """Prompts of a batch; the paper gives no figure. A `grid` takes their place."""

    grid: tuple[PositiveInt, PositiveInt] | None = None
    """Rows and columns of a grid of prompts: entities times relations, or articles times questions,
    so that every prompt's passage is a hard negative for its neighbours. Use it where examples
    state an entity and a relation. By default prompts are drawn one by one (paper)."""

    grids: PositiveInt = 1
    """Grids of a batch, each of a source drawn by the weights. More fill a GPU and mix formats."""

    alike_rows: bool = False
    """Puts entities with similar names into one grid, by the base model's token embeddings, so that
    each is a hard negative for the others. By default they are drawn at random."""

    others: NonNegativeInt = 0
    """Prompts beside the grids, from the sources that fill none. It must be positive if there are
    such sources, and 0 otherwise."""

    positives: PositiveInt = 5
    """At most this many positives of each prompt are in a batch: gold passages, or so many first
    ranks of the teacher (paper: 5)."""

    hard_negatives: NonNegativeInt = 10
    """Hard negatives that are drawn for each prompt from the teacher's pool (paper: up to 10). Use
    0 with `positives: gold` and a grid to do without a teacher."""

    candidates: PositiveInt = 3
    """Passages that each prompt reads in training (paper: 10, as k). They take most of a step."""

    generate: NonNegativeInt | None = None
    """This many of a batch's retrieving prompts are answered, neighbours in a grid; the others only
    retrieve, which is cheap. By default all are answered (paper)."""

    questions_per_passage: NonNegativeInt = 0
    """Extra questions of the same source that are generated for every candidate passage, of the
    same relation first. They share its candidate set, so each candidate is a positive for one
    prompt and hard for the others; an answer then costs one passage instead of all candidates
    (beyond the paper)."""

    cross_batch_memory: NonNegativeInt = 0
    """Cross-batch memory: the passages of this many earlier batches are negatives too, with the
    embeddings that they had then. Use it late in training: from the first step on it prevented
    learning (beyond the paper)."""

    passage_tokens: tuple[LengthStep, ...] = ()
    """A length curriculum: passages that are only embedded are cut, and later less. It halves the
    cost of a step where titles stand at both ends. By default all have `max_passage_tokens` (beyond
    the paper)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        points = [step.after for step in self.passage_tokens]
        if points and (points[0] != 0 or sorted(set(points)) != points):
            raise ImpRAGError("passage_tokens must begin with after: 0 and go upwards")
        if self.alike_rows and self.grid is None:
            raise ImpRAGError("alike_rows is for grids, but there is no batch.grid")
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
    """Every n-th step also generates, as in warmup. At 0 none does, and the layers above b lose the
    ability to read; 4 to 10 preserve it."""


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
    """The stages in their order, and J = J_gen + λ · J_ret, which all of them minimise."""

    bottom: BottomStage | None = None
    warmup: WarmupStage = WarmupStage()
    self_distillation: SelfDistillationStage = SelfDistillationStage()

    mine_every: PositiveInt | None = None
    """From warmup on, the model's own index ranks the corpus at the start of each stage and every
    this many steps. Prompts read its first ranks beside their positives, and in warmup these are
    hard negatives. Each ranking embeds the whole corpus. By default the candidates are the
    teacher's (paper)."""

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
    """Length of the run, and which weights are trained how."""

    steps: PositiveInt | None = None
    """Optimizer steps. Give either `steps` or `epochs`; without a section `train`, it is 10
    epochs."""

    epochs: PositiveFloat | None = None
    """Passes through as many examples as all sources have together (paper: 10)."""

    bottom_learning_rate: PositiveFloat | None = None
    """Learning rate of layers 0..b, which retrieve. They often train well with twice the rate of
    the layers above. By default it is `trainer.learning_rate`."""

    freeze_embeddings: bool = False
    """Keeps the token embeddings as they are, and the head where it is tied to them. They are a
    fifth of a small model and a third of its step (beyond the paper)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            both = "none" if self.steps is None else "both"
            raise ImpRAGError(f"give one of steps and epochs, not {both}")
        return self


class LoraGroup(Section):
    """An adapter on one group of layers: `bottom` (0..b), `reading` (b+1..t) or `top` (above t)."""

    rank: PositiveInt = 16
    """Rank of the two factors."""

    alpha: PositiveFloat = 32.0
    """Scales the adapter by alpha / rank; with alpha = rank, by 1."""

    trained: bool = True
    """Whether the adapter is trained; otherwise it stays as `model.start` brings it."""


class LoraSettings(Section):
    """Adapters instead of full fine-tuning (beyond the paper). A group without one is frozen."""

    bottom: LoraGroup | None = None
    reading: LoraGroup | None = None
    top: LoraGroup | None = None

    targets: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    """Names of the projections that are adapted. Change them for models that name theirs otherwise;
    an unknown name is refused with those that there are."""

    norms: bool = False
    """Trains the norms of adapted groups too; with `top`, also the one after the last layer."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        groups = [group for group in (self.bottom, self.reading, self.top) if group is not None]
        if not groups:
            raise ImpRAGError("lora adapts no layers; give bottom, reading or top, or no lora")
        if not any(group.trained for group in groups):
            raise ImpRAGError("lora trains no layers; leave one group trained")
        return self


class EvaluationSettings(Section):
    """Evaluation while training (paper, section 3: 1,000 NQ dev questions). It takes place every
    `trainer.eval_steps` steps, and the checkpoint with the best `trainer.metric_for_best_model`,
    averaged over the tasks, becomes the model."""

    data: Location | None = None
    """A benchmark folder, as in `imprag eval --data`."""

    tasks: tuple[Annotated[str, AfterValidator(_locate_in_task)], ...] = ()
    """Tasks of the benchmark, files, or `TASK=FILE`, as in `imprag eval --tasks`."""

    split: str = "dev"
    """Split of the benchmark or of a set on the hub."""

    limit: PositiveInt | None = 200
    """Evaluates at most this many examples of each task."""

    corpus: Location | None = None
    """What is retrieved from: `split` takes the benchmark's passages about the entities of the
    split, which are embedded in minutes; a name or path takes another corpus. By default it is the
    recipe's corpus."""

    patience: PositiveInt | None = None
    """Stops after this many evaluations without a better one. By default training goes on."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.data is None and not self.tasks:
            raise ImpRAGError("evaluation has nothing to ask; give it data or tasks")
        return self


class Recipe(Section):
    """A whole recipe; `configs/` holds examples."""

    model: ModelSettings = ModelSettings()

    corpus: Annotated[tuple[Location, ...], Field(min_length=1), BeforeValidator(_several)] = (
        "default",
    )
    """The passages: a built-in corpus (`default` or one of its parts) or a path, or a list of
    them, which are joined."""

    data: Annotated[tuple[Source, ...], Field(min_length=1)]
    teacher: TeacherSettings = TeacherSettings()
    batch: BatchSettings = BatchSettings()
    stages: StageSettings = StageSettings()
    train: TrainSettings = TrainSettings(epochs=10)

    trainer: Annotated[dict[str, Any], AfterValidator(trainer_arguments)] = Field(
        default={}, validate_default=True
    )
    """Arguments of transformers' `TrainingArguments`: optimizer, learning rate and its schedule,
    precision, seed, gradient accumulation, saving and logging. Those that ImpRAG decides are
    refused with the reason."""

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
                f"teacher.hard_negatives must be two ranks behind the {self.batch.positives} "
                f"positives, the first one first, not [{first}, {last}]"
            )
        for source in self.data:
            if isinstance(source, SyntheticSource) and source.corpus not in (None, *self.corpus):
                raise ImpRAGError(
                    f"{source.synthetic} is to be made from {source.corpus}, which is none of the "
                    f"recipe's corpora: {', '.join(self.corpus)}"
                )
        if self.trainer["dataloader_num_workers"] and self.stages.mine_every:
            raise ImpRAGError(
                "with stages.mine_every, batches need the model, which "
                "trainer.dataloader_num_workers have not: set one of them to 0 or null"
            )
        return self

    @property
    def seed(self) -> int:
        """Decides all that is drawn."""
        seed: int = self.trainer["seed"]
        return seed

    @property
    def precision(self) -> Literal["bf16", "fp32"]:
        """What layers compute in; trained weights are float32."""
        return "bf16" if self.trainer["bf16"] else "fp32"

    @property
    def accumulation(self) -> int:
        """Batches of an optimizer step."""
        count: int = self.trainer["gradient_accumulation_steps"]
        return count

    def to_yaml(self) -> str:
        """The recipe with all its keys, as in a run folder's ``recipe.yaml``."""
        content = self.model_dump(mode="json")
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)

    def steps(self, examples: int) -> int:
        """Steps of the optimizer in all, for so many training examples."""
        if self.train.steps is not None:
            return self.train.steps
        assert self.train.epochs is not None
        return math.ceil(self.train.epochs * examples / (self.batch.prompts * self.accumulation))

    def fingerprint(self) -> str:
        """Names all that decides the training: not evaluation, saving or logging."""
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
