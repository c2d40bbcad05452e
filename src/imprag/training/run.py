"""Runs a training: from a recipe to a trained model in a run folder."""

import copy
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import FullyShardedDataParallelPlugin
from transformers import set_seed

from imprag.corpus import Corpus, load_corpus
from imprag.errors import ImpRAGError
from imprag.io.files import content_digest, expand_home, read_json, write_json
from imprag.io.locking import only_builder
from imprag.model import ImpRAGModel, load_base_model
from imprag.model.fingerprint import model_fingerprint
from imprag.model.load import DEFAULT, DEFAULT_FOLDER, load_pretrained
from imprag.tasks.knowledge import QUESTION
from imprag.tasks.task import load_task
from imprag.training.batches import Batches
from imprag.training.data import MakeTeacher, TrainingSource, load_sources
from imprag.training.distributed import from_main_process
from imprag.training.hard_negatives import HardNegativeMiner
from imprag.training.lora import add_adapters, begin_with, halve_frozen, hold_untrained
from imprag.training.packages import require_packages
from imprag.training.precision import note_slow_bfloat16
from imprag.training.recipe import Recipe
from imprag.training.recipe_file import load_recipe
from imprag.training.samplers import Sampler, make_sampler
from imprag.training.schedule import Schedule
from imprag.training.sources import TaskSource
from imprag.training.step import TrainingModel
from imprag.training.trainer import (
    METRICS,
    Evaluate,
    ImpRAGTrainer,
    check_checkpoint,
    last_checkpoint,
)

MODEL = "model"
RANKS = "own-ranks"  # the ranks of the `HardNegativeMiner`
RECIPE = "recipe.yaml"
INPUTS = "inputs.json"
RETRIEVER = "retriever"  # the run of a baseline's own retriever, in the folder of its run

#: Makes the function that evaluates the model during training, from the corpus and a folder; for a
#: baseline, also from ``retriever``, which makes its retriever over a corpus.
Evaluator = Callable[..., Evaluate]


def train(
    recipe: Recipe,
    out: Path | str,
    *,
    resume: bool = False,
    evaluator: Evaluator | None = None,
    teacher: MakeTeacher | None = None,
    make: "MakeTrainer | None" = None,
) -> dict[str, Any]:
    """Train a model by a recipe; :func:`load_pretrained` loads ``out/model`` afterwards.

    The baselines with a separate retriever need :func:`imprag.baselines.run.train_baseline`.

    Args:
        recipe: the recipe.
        out: the run folder: ``recipe.yaml``, ``inputs.json`` (fingerprints of the data),
            ``metrics.jsonl``, checkpoints, the model.
        resume: continue from the last checkpoint in ``out``. The result is the same as without
            the interruption.
        evaluator: takes the corpus and a folder and returns the function that evaluates the model
            every ``eval_steps`` steps, such as
            `imprag.evaluation.development.DevelopmentSet`.
        teacher: makes the text retriever over the corpus that labels prompts; by default the
            recipe's.
        make: makes the trainer; by default :func:`make_trainer`.

    Returns:
        ``model`` (its folder), ``steps``, ``seconds`` and ``loss`` (mean over the run).

    Raises:
        ImpRAGError: the folder holds another run, or the run's data changed since; data is missing
            or malformed, the loss is not finite, the disk is full, or a package is missing.
    """
    if recipe.system in ("ra-dit", "ra-dit-lm") and teacher is None and make is None:
        raise ImpRAGError(
            f"the system {recipe.system} has a retriever of its own: train it with "
            "imprag.baselines.run.train_baseline"
        )
    require_packages(recipe)
    out = expand_home(out)
    # accelerate's default under FSDP2 are sharded checkpoints, which nothing but FSDP2 reads.
    os.environ.setdefault("FSDP_STATE_DICT_TYPE", "FULL_STATE_DICT")
    # Processes wait for each other while the main one evaluates or makes teacher labels.
    patience = timedelta(seconds=recipe.trainer.get("ddp_timeout", 1800))
    processes = PartialState(cpu=not torch.cuda.is_available(), timeout=patience)
    if processes.is_main_process:
        note_slow_bfloat16(recipe.precision)
    with only_builder(out) if processes.is_main_process else nullcontext():
        return _train(recipe, out, resume, evaluator, teacher, make or make_trainer, processes)


@dataclass(frozen=True, eq=False)
class Run:
    """What a trainer is made of.

    Attributes:
        recipe, out: as for :func:`train`.
        corpus: the passages.
        sampler: samples the batches.
        evaluate: evaluates the model during training, if the recipe asks for it.
        part: rank and number of processes.
    """

    recipe: Recipe
    out: Path
    corpus: Corpus
    sampler: Sampler
    evaluate: Evaluate | None
    part: tuple[int, int]

    @property
    def schedule(self) -> Schedule:
        """The stages of the run."""
        return Schedule(self.recipe, self.recipe.steps(len(self.sampler.examples)))


MakeTrainer = Callable[[Run], ImpRAGTrainer]


def _train(
    recipe: Recipe,
    out: Path,
    resume: bool,
    evaluator: Evaluator | None,
    teacher: MakeTeacher | None,
    make: MakeTrainer,
    processes: PartialState,
) -> dict[str, Any]:
    """:func:`train` with the run folder locked."""
    checkpoint = from_main_process(
        _start(recipe, out, resume) if processes.is_main_process else None
    )
    with processes.main_process_first():  # the others read its files from the cache
        corpus = load_corpus(recipe.corpus)
        sources = load_sources(recipe, corpus, teacher)
        if processes.is_main_process:
            start = _start_digest(recipe)
            _check_inputs(out, corpus, sources, start, resumed=checkpoint is not None)
        evaluate = evaluator(corpus, out / "development") if evaluator else None

    set_seed(recipe.seed)
    sampler = make_sampler(sources, recipe.batch, corpus, recipe.seed)
    part = (processes.process_index, processes.num_processes)
    trainer = make(Run(recipe, out, corpus, sampler, evaluate, part))
    if trainer.is_fsdp_enabled:
        check_fsdp(trainer.accelerator.state.fsdp_plugin)
    if checkpoint:
        trainer.check_optimizer(Path(checkpoint))
    try:
        result = trainer.train(resume_from_checkpoint=checkpoint)
    except OSError as error:
        raise ImpRAGError(
            f"training stopped: {error}; the checkpoints in {out} are kept: rerun the same command "
            "with --resume to continue"
        ) from error
    trainer.load_best()
    trainer.save_trained(out / MODEL)
    return {
        "model": str(out / MODEL),
        "steps": result.global_step,
        "seconds": round(result.metrics["train_runtime"], 1),
        "loss": result.training_loss,
    }


def make_trainer(run: Run, kind: type[ImpRAGTrainer] = ImpRAGTrainer) -> ImpRAGTrainer:
    """The trainer of a language model that retrieves and reads.

    Args:
        run: the run.
        kind: the trainer's class.
    """
    recipe = run.recipe
    whole, tokenizer = trainable_model(recipe)
    model = TrainingModel(whole, recipe.stages)
    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    miner = HardNegativeMiner(model, tokenizer, run.corpus, run.out / RANKS, dtype)
    batches = Batches(run.sampler, run.schedule, run.corpus, tokenizer, recipe, *run.part, miner)
    return kind(model, tokenizer, recipe, batches, run.out, run.evaluate)


def trainable_model(recipe: Recipe) -> tuple[ImpRAGModel, Any]:
    """The model of a recipe before its first step, with adapters if it has any, and its tokenizer.

    Weights are in float32; autocast computes in bfloat16.
    """
    lm, tokenizer = load_base_model(recipe.model.base, torch.float32)
    config = recipe.model.to_config()
    fingerprint = model_fingerprint(lm, tokenizer)
    config = replace(config, base_model_fingerprint=fingerprint, trained=True)
    template = question_template(recipe)
    frozen = None
    if config.frozen_passages != "none":
        frozen = copy.deepcopy(lm).requires_grad_(False)
    start = None
    if recipe.model.start:
        start, _ = load_pretrained(recipe.model.start, torch.float32, lm.device)
        template = start.config.question_template or template
    if recipe.lora:
        add_adapters(lm, recipe.lora, config, start and start.lm)
    if start is not None:
        begin_with(lm, start.lm)
        del start
    if recipe.lora and recipe.precision == "bf16":
        halve_frozen(lm)
    if recipe.lora:
        hold_untrained(lm, recipe.lora, config)
    if recipe.train.freeze_embeddings:
        lm.get_input_embeddings().requires_grad_(False)
    if recipe.trainer["gradient_checkpointing"]:
        lm.gradient_checkpointing_enable({"use_reentrant": False})
    return ImpRAGModel(lm, replace(config, question_template=template), frozen), tokenizer


def question_template(recipe: Recipe) -> str | None:
    """The ``question_template`` of a recipe's model: the tasks' own, if it trains on questions."""
    tasks = [load_task(one.task) for one in recipe.data if isinstance(one, TaskSource)]
    if not any(QUESTION in (task.template, task.plain_template) for task in tasks):
        return None
    return QUESTION.replace("{input}", "{question}")


def training_time(out: Path) -> dict[str, float]:
    """``steps``, ``hours`` and ``tokens`` of a finished run.

    Calls that were killed did not log their time and do not count; nor do the tokens of runs of
    earlier versions.

    Raises:
        ImpRAGError: the run is not finished.
    """
    lines = (out / METRICS).read_text(encoding="utf-8").splitlines() if out.is_dir() else []
    logged = [json.loads(line) for line in lines]
    ends = [one for one in logged if "train_runtime" in one]
    if not ends:
        raise ImpRAGError(
            f"{out} holds no finished run; rerun its imprag train command to finish it"
        )
    seconds = sum(one["train_runtime"] for one in ends)
    tokens = sum(one.get("tokens", 0) for one in logged)
    return {"steps": ends[-1]["step"], "hours": round(seconds / 3600, 2), "tokens": tokens}


def check_fsdp(plugin: FullyShardedDataParallelPlugin) -> None:
    """Check that a run is possible under FSDP with these settings.

    Raises:
        ImpRAGError: layers would be sharded one by one, checkpoints would not hold whole weights,
            or it is FSDP1.
    """
    if plugin.fsdp_version != 2:
        raise ImpRAGError("only FSDP2 is supported: set FSDP_VERSION=2 (fsdp_version: 2)")
    if plugin.auto_wrap_policy is not None:
        raise ImpRAGError(
            "FSDP would shard layers one by one, but passages and prompts alternate in them; "
            "shard the model as a whole with FSDP_AUTO_WRAP_POLICY=NO_WRAP "
            "(fsdp_auto_wrap_policy: NO_WRAP)"
        )
    if plugin.state_dict_type.name != "FULL_STATE_DICT":
        raise ImpRAGError(
            "checkpoints hold whole weights: set FSDP_STATE_DICT_TYPE=FULL_STATE_DICT "
            "(fsdp_state_dict_type: FULL_STATE_DICT)"
        )


def _start(recipe: Recipe, out: Path, resume: bool) -> str | None:
    """Prepare the run folder; returns the checkpoint to resume from, if there is one."""
    path = out / RECIPE
    if path.exists():
        former = load_recipe(path)
        if former.fingerprint() != recipe.fingerprint():
            raise ImpRAGError(
                f"{out} holds a run of another recipe ({'; '.join(former.differences(recipe)[:3])})"
                "; choose another folder"
            )
        if not resume and not (out / MODEL).exists():
            raise ImpRAGError(f"{out} holds a run already; continue it with --resume")
    elif out.exists() and any(not each.name.startswith(RETRIEVER) for each in out.iterdir()):
        raise ImpRAGError(f"{out} is not empty and not a run folder; choose another folder")
    if (out / MODEL).exists():
        raise ImpRAGError(f"the run in {out} is finished; its model is {out / MODEL}")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    checkpoint = last_checkpoint(out)
    if checkpoint is not None:
        check_checkpoint(checkpoint)
    _cut_metrics(out / METRICS, 0 if checkpoint is None else int(checkpoint.name.split("-")[-1]))
    return str(checkpoint) if checkpoint else None


def _start_digest(recipe: Recipe) -> dict[str, str]:
    """The digest of the weights that training starts from, if they are in a folder."""
    start = recipe.model.start
    folder = DEFAULT_FOLDER if start == DEFAULT else Path(start or "")
    files = sorted(folder.glob("*.safetensors")) if start else []
    return {"model.start": content_digest(folder, files)} if files else {}


def _check_inputs(
    out: Path,
    corpus: Corpus,
    sources: Sequence[TrainingSource],
    start: Mapping[str, str],
    *,
    resumed: bool,
) -> None:
    """Compare the data's fingerprints with those in ``inputs.json``, or write them there.

    Args:
        out: the run folder.
        corpus: the passages.
        sources: the training examples; their fingerprints include the teacher's ranks.
        start: of `_start_digest`.
        resumed: whether the run continues from a checkpoint.

    Raises:
        ImpRAGError: the corpus, the examples of a source or the weights of ``model.start`` changed
            since the run began.
    """
    now = {"corpus": corpus.fingerprint, **start}
    now |= {f"data.{n} ({one.name})": one.fingerprint() for n, one in enumerate(sources)}
    path = out / INPUTS
    if path.is_file():
        before = read_json(path)
        known = before if isinstance(before, dict) else {}
        # Earlier versions did not store all of them.
        other = [name for name, one in now.items() if known.get(name, one) != one]
        if other:
            raise ImpRAGError(
                f"{', '.join(other[:3])} changed since the run in {out} began; restore the former "
                "data, or choose another folder"
            )
        return
    if resumed:
        print(
            f"note: {out} is from an earlier version, which did not store fingerprints of its "
            "data; whether the data changed is not checked",
            file=sys.stderr,
        )
    write_json(path, now)


def _cut_metrics(path: Path, step: int) -> None:
    """Drop lines that a killed run logged after its last checkpoint; they are logged again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
