"""The trainer: transformers' ``Trainer`` around :class:`TrainingModel`."""

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainingArguments,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from imprag.errors import ImpRAGError
from imprag.io.files import read_json
from imprag.model import ImpRAGModel
from imprag.model.adapter import PREFIX, WEIGHTS
from imprag.model.base import load_base_model, quiet_transformers
from imprag.model.load import save_pretrained
from imprag.model.peft_adapters import has_adapter, save_adapter
from imprag.model.weight_files import check_safetensors, named, read_tensors
from imprag.training.batches import Batches
from imprag.training.distributed import from_main_process, mean_over_processes, shards_of
from imprag.training.packages import curve_writers
from imprag.training.recipe import Recipe
from imprag.training.step import JointLoss, TrainingBatch, TrainingModel

METRICS = "metrics.jsonl"
CROSS_BATCH_MEMORY = "cross_batch_memory.safetensors"  # in a checkpoint
_OLD_MEMORY = "memory.safetensors"  # its name in older checkpoints
_FSDP_WEIGHTS = "pytorch_model_fsdp.bin"  # Trainer's own copy of sharded weights
_OPTIMIZERS = {False: "optimizer.pt", True: "optimizer.bin"}  # in a checkpoint, under FSDP2
_CHECKED = ("*.safetensors", "*.pt", "*.pth", "*.bin")  # files of a checkpoint
_LM = "model.lm."  # what the names of the language model's weights start with in TrainingModel

Evaluate = Callable[[ImpRAGModel, Any, int], dict[str, float]]
"""``evaluate(model, tokenizer, step)`` measures the model in training and returns metrics by name.

All processes call it together, and the main process's metrics count."""


class ImpRAGTrainer(Trainer):  # type: ignore[misc]
    """Trains a :class:`TrainingModel`, or another joint loss, by a recipe.

    ``Trainer`` does the rest: devices, DDP and FSDP, mixed precision, checkpoints, callbacks,
    TensorBoard. It neither shuffles nor distributes batches, because each batch is already a
    function of its number and the process's rank.

    Args:
        model: the model with its losses.
        tokenizer: the model's tokenizer; it is saved with the model.
        recipe: optimizer, length of the run, saving.
        batches: the batches of this process.
        out: folder for checkpoints and ``metrics.jsonl``.
        evaluate: called every ``eval_steps`` steps.
    """

    optimizer: torch.optim.Optimizer | None
    control: TrainerControl

    def __init__(
        self,
        model: JointLoss,
        tokenizer: Any,
        recipe: Recipe,
        batches: Batches,
        out: Path,
        evaluate: Evaluate | None = None,
    ) -> None:
        self.recipe = recipe
        self.tokenizer = tokenizer
        self._evaluate_model = evaluate
        self._losses: list[tuple[Tensor, Tensor]] = []
        self._tokens = 0
        evaluation = recipe.evaluation if evaluate else None
        callbacks: list[TrainerCallback] = [_Saving()]
        if evaluation and evaluation.patience:
            callbacks.append(EarlyStoppingCallback(evaluation.patience))
        with _refusals():
            super().__init__(
                model=model,
                args=_arguments(recipe, batches, out, evaluates=evaluation is not None),
                train_dataset=batches,
                eval_dataset=[] if evaluation else None,  # `evaluate` has its own examples
                callbacks=callbacks,
            )

    # Batches and losses

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This process's batches, one at a time, in their order."""
        workers = self.args.dataloader_num_workers
        return DataLoader(
            self.train_dataset,
            batch_size=1,
            collate_fn=lambda items: {"batch": items[0]},
            num_workers=workers,
            # Forked workers share the corpus and the sampler; they never use the model.
            multiprocessing_context="fork" if workers else None,
            prefetch_factor=4 if workers else None,
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, TrainingBatch],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss J of a batch.

        Raises:
            ImpRAGError: the loss is not finite.
        """
        batch = inputs["batch"]
        output = model(batch)
        if not bool(output.loss.detach().isfinite()):
            last = last_checkpoint(Path(self.args.output_dir))
            kept = f"{last} is kept" if last else "there is no checkpoint yet"
            raise ImpRAGError(
                f"the loss of step {self.state.global_step + 1} is {output.loss.item()}, with the "
                f"examples {', '.join(batch.ids[:8])}{' ...' if len(batch.ids) > 8 else ''}; "
                f"{kept}. Lower trainer.learning_rate, or check these examples"
            )
        if model.training:
            self._losses.append((output.generation.detach(), output.retrieval.detach()))
            self._tokens += batch.tokens
        return (output.loss, output) if return_outputs else output.loss

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer: layers 0..b have their own learning rate, vectors no weight decay."""
        if self.optimizer is None:
            settings = self.args
            bottom = self.recipe.train.bottom_learning_rate or settings.learning_rate
            groups: dict[tuple[float, float], list[nn.Parameter]] = {}
            for name, parameter in (model or self.model).named_parameters():
                if parameter.requires_grad:
                    rate = bottom if self._is_bottom(name) else settings.learning_rate
                    decay = settings.weight_decay if parameter.ndim > 1 else 0.0
                    groups.setdefault((rate, decay), []).append(parameter)
            with _refusals():
                make, arguments = self.get_optimizer_cls_and_kwargs(settings)
                self.optimizer = make(
                    [
                        {"params": parameters, "lr": rate, "weight_decay": decay}
                        for (rate, decay), parameters in groups.items()
                    ],
                    **arguments,
                )
        return self.optimizer

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """``Trainer``'s learning rate schedule, with errors in one line."""
        with _refusals():
            return super().create_scheduler(*args, **kwargs)

    def _is_bottom(self, name: str) -> bool:
        parts = name.split(".")
        return "layers" in parts and int(parts[parts.index("layers") + 1]) <= self.recipe.model.b

    # Evaluation and logs

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: Sequence[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluates the model and gives the main process's metrics to all processes."""
        assert self._evaluate_model is not None
        with self._training_model().inference() as model, self.accelerator.autocast():
            measured = self._evaluate_model(model, self.tokenizer, self.state.global_step)
        measured = from_main_process(measured)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in measured.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add both losses and the tokens since the last log, and append to ``metrics.jsonl``."""
        if "loss" in logs and self._losses:
            for name, part in zip(
                ("generation", "retrieval"), zip(*self._losses, strict=True), strict=True
            ):
                mean = mean_over_processes(torch.stack(part).float().mean())
                logs[f"{name}_loss"] = round(mean.item(), 4)
            self._losses.clear()
        if "loss" in logs or "train_runtime" in logs:
            tokens = torch.tensor(float(self._tokens), device=self.args.device)
            processes = self.args.world_size
            logs["tokens"] = round(mean_over_processes(tokens).item() * processes)
            self._tokens = 0
        super().log(logs, start_time)
        if self.is_world_process_zero():
            with open(Path(self.args.output_dir) / METRICS, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.state.global_step, **logs}) + "\n")

    # Checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint; delete it if it cannot be completed.

        Raises:
            ImpRAGError: the checkpoint cannot be written.
        """
        out = Path(self.args.output_dir)
        folder = out / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
            if self.is_fsdp_enabled and self.args.should_save:
                (folder / _FSDP_WEIGHTS).unlink()  # `_save` has written them
        except (OSError, SafetensorError, RuntimeError) as error:  # the last is torch.save's
            shutil.rmtree(folder, ignore_errors=True)
            raise ImpRAGError(
                f"the checkpoint of step {self.state.global_step} cannot be written to {out} "
                f"({error}); make room and rerun the same command with --resume"
            ) from error

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write the files that ``load_pretrained`` reads, and the cross-batch memory."""
        if not self.args.should_save:  # under FSDP2, all processes come here
            return
        folder = Path(output_dir or self.args.output_dir)
        model = self._training_model().model
        state_dict = _weights_of_lm(state_dict)
        folder.mkdir(parents=True, exist_ok=True)
        with quiet_transformers():
            if has_adapter(model.lm):
                save_adapter(model.lm, folder, state_dict)
            else:
                model.lm.save_pretrained(folder, state_dict=state_dict)
        model.config.save(folder)
        self.tokenizer.save_pretrained(folder)
        self._save_cross_batch_memory(folder)

    def check_optimizer(self, checkpoint: Path) -> None:
        """Check that a checkpoint's optimizer has the form that this run reads.

        Raises:
            ImpRAGError: the one was written under FSDP2, and the other is not, or vice versa.
        """
        fsdp = self.is_fsdp_enabled
        if (checkpoint / _OPTIMIZERS[not fsdp]).exists():
            began, this = ("without", "with") if fsdp else ("with", "without")
            raise ImpRAGError(
                f"the run of {checkpoint} began {began} FSDP2 and cannot be resumed {this} it: "
                f"start the command as before, {began} ACCELERATE_USE_FSDP=true FSDP_VERSION=2; "
                "the number of processes may change"
            )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights((model or self.model).model.lm, Path(resume_from_checkpoint))
        self._load_cross_batch_memory(Path(resume_from_checkpoint))

    def _save_cross_batch_memory(self, folder: Path) -> None:
        memory = self._training_model().cross_batch_memory
        if self.recipe.batch.cross_batch_memory and memory:
            rows = torch.tensor(list(memory))
            embeddings = torch.stack(list(memory.values()))
            save_file({"rows": rows, "embeddings": embeddings}, folder / CROSS_BATCH_MEMORY)

    def _load_cross_batch_memory(self, folder: Path) -> None:
        files = [folder / name for name in (CROSS_BATCH_MEMORY, _OLD_MEMORY)]
        if found := [file for file in files if file.exists()]:
            saved = load_file(found[0])
            memory = dict(zip(saved["rows"].tolist(), saved["embeddings"], strict=True))
            self._training_model().cross_batch_memory = memory

    def load_best(self) -> None:
        """Load the weights of the checkpoint with the best metric, if there were evaluations."""
        if self.state.best_model_checkpoint is not None:
            load_weights(self._training_model().model.lm, Path(self.state.best_model_checkpoint))

    def save_trained(self, folder: Path) -> None:
        """Write the model into a new folder, for :func:`load_pretrained`, unless it is there."""
        # Without FSDP2, the model itself holds whole weights.
        whole = self.accelerator.get_state_dict(self.model) if self.is_fsdp_enabled else None
        if self.is_world_process_zero() and not folder.exists():
            model = self._training_model().model
            save_pretrained(model, self.tokenizer, folder, _weights_of_lm(whole))

    def _training_model(self) -> TrainingModel:
        """The model in training, without the wrapper of DDP."""
        model: TrainingModel = self.accelerator.unwrap_model(self.model)
        return model


class _Saving(TrainerCallback):  # type: ignore[misc]
    """Decides when to save, log and evaluate, where ``Trainer``'s own rules do not fit."""

    def on_train_begin(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> None:
        """Use the intervals of the recipe at hand: a resumed run may have changed them."""
        state.compute_steps(args, state.max_steps)

    def on_evaluate(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> None:
        """Save a checkpoint after each evaluation, so that `load_best` finds it."""
        control.should_save = True


def load_weights(lm: Any, folder: Path) -> None:
    """Load a checkpoint's weights, or its adapter, into a model.

    Raises:
        ImpRAGError: the checkpoint is damaged, or lacks weights of the model.
    """
    if has_adapter(lm):
        saved = read_tensors(folder / WEIGHTS)
        # Norms are loaded by their names in the model, adapters with or without peft's prefix.
        plain = {name.removeprefix(PREFIX): value for name, value in saved.items()}
        wanted = {name.removeprefix(PREFIX) for name in get_peft_model_state_dict(lm)}
        if lacking := sorted(wanted - plain.keys()):
            raise ImpRAGError(f"{folder / WEIGHTS} lacks {named(lacking)}")
        set_peft_model_state_dict(lm, shards_of(plain, lm))
    else:
        saved, _ = load_base_model(folder, lm.dtype, "cpu")
        lm.load_state_dict(shards_of(saved.state_dict(), lm))


def _weights_of_lm(weights: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
    """The language model's weights among those of a `TrainingModel`, by its own names."""
    if weights is None:
        return None
    return {name.removeprefix(_LM): weight for name, weight in weights.items()}


def check_checkpoint(folder: Path) -> None:
    """Check that a checkpoint's files are complete, without reading them whole.

    Raises:
        ImpRAGError: a file is damaged.
    """
    for path in (file for kind in _CHECKED for file in folder.glob(kind)):
        if path.suffix == ".safetensors":
            is_whole = _is_safetensors(path)
        else:
            is_whole = zipfile.is_zipfile(path)  # torch.save writes the zip's directory last
        if not is_whole:
            raise ImpRAGError(
                f"{path} is damaged; delete {folder} and rerun the same command: it continues "
                "from the checkpoint before, or starts again if there is none"
            )


def _is_safetensors(path: Path) -> bool:
    try:
        check_safetensors(path)
    except ImpRAGError:
        return False
    return True


def last_checkpoint(out: Path) -> Path | None:
    """The newest complete checkpoint of a run folder."""
    found = [
        (int(folder.name.rpartition("-")[2]), folder)
        for folder in out.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if _is_complete(folder)
    ]
    return max(found)[1] if found else None


def _is_complete(folder: Path) -> bool:
    try:
        # Trainer writes it last.
        return bool(read_json(folder / "trainer_state.json"))
    except ImpRAGError:
        return False


def _arguments(recipe: Recipe, batches: Batches, out: Path, *, evaluates: bool) -> Any:
    given = dict(recipe.trainer)
    del given["gradient_checkpointing"]  # `train` enables it on the language model itself
    if evaluates:
        given |= {"eval_strategy": "steps", "greater_is_better": True}
    else:
        del given["eval_steps"], given["metric_for_best_model"]
    ours: dict[str, Any] = {
        "output_dir": str(out),
        "max_steps": batches.schedule.steps,
        "per_device_train_batch_size": 1,
        "save_strategy": "steps",
        "logging_nan_inf_filter": False,
        "remove_unused_columns": False,
        "label_names": [],
        "dataloader_pin_memory": False,
        # The batch of a process may have no generated prompt.
        "ddp_find_unused_parameters": True,
        "use_cpu": not torch.cuda.is_available(),
    }
    return TrainingArguments(**{"report_to": curve_writers(), **given, **ours})


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn errors of transformers about ``trainer`` arguments into one line."""
    try:
        yield
    except (ValueError, TypeError, ImportError) as error:
        if isinstance(error, ImpRAGError):
            raise
        raise ImpRAGError(f"trainer: {' '.join(str(error).split())}") from error
