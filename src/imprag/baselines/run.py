"""Trains a baseline by its recipe: its own retriever first, if it has one, then the reader."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from imprag.baselines.folder import RETRIEVER, Baseline
from imprag.baselines.retriever import make_retriever_trainer
from imprag.io.files import atomic_path, expand_home
from imprag.io.locking import make_once
from imprag.model import load_base_model, load_pretrained, save_pretrained
from imprag.training import run as training
from imprag.training.recipe import Recipe
from imprag.training.run import MODEL, Evaluator, Run, make_trainer, train
from imprag.training.trainer import ImpRAGTrainer

_LAYERS = f"{RETRIEVER}-base"


def train_baseline(
    recipe: Recipe, out: Path | str, *, resume: bool = False, evaluator: Evaluator | None = None
) -> dict[str, Any]:
    """Train a baseline; ``out/model`` holds the reader with ``baseline.json`` and the retriever.

    Args:
        recipe: the recipe; its ``system`` is not ``imprag``.
        out: the run folder; ``out/retriever`` is that of the retriever's own training.
        resume: as for :func:`imprag.training.run.train`.
        evaluator: as there, but it also takes ``retriever``, which makes one over a corpus.

    Returns:
        as there.

    Raises:
        ImpRAGError: as there.
    """
    out = expand_home(out)
    found = Baseline(recipe.system, recipe.teacher.retriever)
    if recipe.system != "ra-it":
        folder = out / training.RETRIEVER
        found = Baseline(recipe.system, str(folder / MODEL))
        if not (folder / MODEL).exists():
            own = retriever_recipe(recipe, out)
            make = partial(make_retriever_trainer, reader_base=recipe.model.base)
            train(own, folder, resume=resume, make=make)
        PartialState().wait_for_everyone()  # the main process saves it
    evaluate = evaluator and partial(evaluator, retriever=found.load_retriever)
    make_reader = partial(_make_reader, finish=partial(_add_retriever, found, recipe))
    return train(
        recipe,
        out,
        resume=resume,
        evaluator=evaluate,
        teacher=found.load_retriever,
        make=make_reader,
    )


def retriever_recipe(recipe: Recipe, out: Path) -> Recipe:
    """The recipe of a baseline's own retriever: the same batches, for the retrieval loss alone.

    A bi-encoder has made the labels itself, so it learns by self-distillation in all steps.
    """
    changed = recipe.model_copy(update={"evaluation": None})
    if recipe.system == "ra-dit":
        warmup = recipe.stages.warmup.model_copy(update={"fraction": 0.0})
        stages = recipe.stages.model_copy(update={"warmup": warmup})
        return changed.model_copy(update={"stages": stages})
    count = recipe.model.b + 2  # the last one never runs, but every model has one that reads
    folder = (out / _LAYERS).resolve()  # as a resumed run reads it in its recipe
    base = make_once(folder, lambda: first_layers(recipe.model.base, count, folder))
    settings = {"base": str(base), "t": count - 1, "frozen_passages": "none"}
    model = recipe.model.model_copy(update=settings)
    lora = recipe.lora and recipe.lora.model_copy(update={"reading": None, "top": None})
    return changed.model_copy(update={"model": model, "lora": lora})


def first_layers(base: str, count: int, out: Path) -> None:
    """Write the first layers of a language model into a folder, as a model of their own.

    Args:
        base: for :func:`imprag.model.load_base_model`.
        count: number of layers.
        out: the folder.
    """
    lm, tokenizer = load_base_model(base, torch.float32, "cpu")
    lm.base_model.layers = lm.base_model.layers[:count]
    config = lm.config.get_text_config()
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:count]
    with atomic_path(out) as temporary:
        lm.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


class _ReaderTrainer(ImpRAGTrainer):
    """Trains a baseline's language model, and saves it with what makes it a baseline."""

    finish: Callable[[Path], None]

    def save_trained(self, folder: Path) -> None:
        """Write the model and ``baseline.json`` into a new folder, unless it is there."""
        if not self.is_world_process_zero() or folder.exists():
            super().save_trained(folder)  # which may gather the weights of all processes
            return
        with atomic_path(folder) as temporary:
            super().save_trained(temporary)
            self.finish(temporary)


def _make_reader(run: Run, finish: Callable[[Path], None]) -> ImpRAGTrainer:
    trainer = make_trainer(run, _ReaderTrainer)
    assert isinstance(trainer, _ReaderTrainer)
    trainer.finish = finish
    return trainer


def _add_retriever(found: Baseline, recipe: Recipe, folder: Path) -> None:
    """Complete a baseline's folder: ``baseline.json``, and the retriever if it is its own."""
    if recipe.system == "ra-it":
        found.save(folder)
        return
    if recipe.system == "ra-dit":
        shutil.copytree(found.retriever, folder / RETRIEVER)
    else:  # with its adapter merged, if it has one, so that it needs no other folder
        model, tokenizer = load_pretrained(found.retriever, torch.float32, "cpu")
        model = model.with_settings(base_model=recipe.model.base, base_model_fingerprint=None)
        save_pretrained(model, tokenizer, folder / RETRIEVER)
    Baseline(recipe.system, RETRIEVER).save(folder)
