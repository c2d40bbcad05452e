"""Runs the steps of a study that are missing, each by its ``imprag`` command.

Every command resumes where it was interrupted. ``OUT/steps/NAME.json`` says that a step is
finished, and by which command; ``OUT/logs/NAME.log`` holds what the last attempt wrote.
"""

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from imprag.errors import ImpRAGError
from imprag.evaluation.run_folder import RunFolder
from imprag.io.files import atomic_path, expand_home, read_json, write_json
from imprag.io.locking import only_builder
from imprag.reproduce.graph import PROMPTS, Graph, Step, load_made_recipe
from imprag.training.run import MODEL, RECIPE

STEPS, LOGS = "steps", "logs"

Status = Literal["done", "failed", "waiting"]
#: Runs an ``imprag`` command in a folder, with its output in a log, and returns its exit status.
Runner = Callable[[Sequence[str], Path, Path], int]


def reproduce(
    graph: Graph, out: Path, *, run: Runner | None = None, devices: int = 1
) -> dict[str, Status]:
    """Run the steps that are not finished; those whose needs failed wait.

    Args:
        graph: the steps.
        out: the folder of the study.
        run: runs a command; by default a process of its own.
        devices: GPUs that train together, by ``torchrun``.

    Returns:
        the status of every step.

    Raises:
        ImpRAGError: required files are missing, or ``out`` holds steps by other commands.
    """
    if missing := graph.missing():
        listed = "".join(f"\n  {name}: {how}" for name, how in missing.items())
        raise ImpRAGError(f"{len(missing)} files are missing; get each by its command:{listed}")
    out = expand_home(out)
    with only_builder(out):
        found = {name: _finished(out, step) for name, step in graph.steps.items()}
        status: dict[str, Status] = {}
        for name, step in graph.steps.items():
            if found[name]:
                status[name] = "done"
            elif all(status[need] == "done" for need in step.needs):
                number = f"{len(status) + 1} of {len(graph.steps)}"
                log = out / LOGS / f"{name}.log"
                print(f"step {number}: {name} (log: {log})", file=sys.stderr, flush=True)
                made = graph.study.data
                status[name] = _run(step, out, run or in_process_of_its_own(devices), made)
            else:
                status[name] = "waiting"
    return status


def status_of(graph: Graph, out: Path) -> dict[str, Status]:
    """The status of every step in a folder, without running anything."""
    return {
        name: "done" if _finished(expand_home(out), step) else "waiting"
        for name, step in graph.steps.items()
    }


def in_process_of_its_own(devices: int = 1) -> Runner:
    """A runner that starts ``python -m imprag``; trainings with several devices by ``torchrun``."""

    def run(command: Sequence[str], folder: Path, log: Path) -> int:
        start = [sys.executable, "-m", "imprag"]
        if command[0] == "train" and devices > 1:
            torchrun = ["torch.distributed.run", "--nproc-per-node", str(devices)]
            start = [sys.executable, "-m", *torchrun, "-m", "imprag"]
        with (
            open(log, "w", encoding="utf-8") as stream,
            subprocess.Popen(
                [*start, *command], cwd=folder, stdout=stream, stderr=subprocess.STDOUT
            ) as process,
        ):
            try:
                code = process.wait()
            except BaseException:
                process.terminate()
                raise
            if code < 0:
                stream.write(f"\n{_killed(-code)}\n")
            return code

    return run


def _killed(number: int) -> str:
    """What happened to a step that a signal ended."""
    name = {int(one): one.name for one in signal.Signals}.get(number, f"signal {number}")
    if number != signal.SIGKILL:
        return f"killed by {name}"
    return (
        f"killed by {name}: the machine may have run out of memory. Run the command again when "
        "nothing else runs: the step continues where it was"
    )


def _run(step: Step, out: Path, run: Runner, made: Iterable[str]) -> Status:
    log = out / LOGS / f"{step.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    try:
        _write_inputs(step, out)
        is_made = _is_made(step, out, made)
    except (ImpRAGError, OSError) as error:  # steps that do not need this one still run
        print(f"  failed: {error}", file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):  # of a full disk
            log.write_text(f"{error}\n", encoding="utf-8")
        return "failed"
    code = 0 if is_made else run(step.command, out, log)
    if code == 130:
        raise KeyboardInterrupt
    if code:
        print(f"  failed: {reason(out, step.name)}", file=sys.stderr, flush=True)
        return "failed"
    if step.kind == "train":  # a finished training is not resumed, and they are large
        for checkpoint in list((out / step.name).glob("**/checkpoint-*")):
            shutil.rmtree(checkpoint)
    seconds = round(time.monotonic() - began, 1)
    write_json(_mark(out, step), {**_identity(step), "seconds": seconds})
    return "done"


def _write_inputs(step: Step, out: Path) -> None:
    """Write the files that a step's command reads."""
    (out / step.name).parent.mkdir(parents=True, exist_ok=True)
    if step.kind == "train" and step.recipe is not None:
        path = out / step.command[step.command.index("--config") + 1]
        path.parent.mkdir(exist_ok=True)
        path.write_text(step.recipe.to_yaml(), encoding="utf-8")
    if step.prompts:
        _write_prompts(out / step.prompts, out / f"{step.name}-{PROMPTS}")


def _is_made(step: Step, out: Path, made: Iterable[str]) -> bool:
    """Whether a step was killed after its last write, so that its command would refuse."""
    if step.kind == "data":
        return (out / step.command[-1]).is_dir()
    if step.kind == "train" and step.recipe and (out / step.name / MODEL).is_dir():
        trained = load_made_recipe(out / step.name / RECIPE, (), made, base=out)
        return trained.fingerprint() == step.recipe.fingerprint()
    return False


def _identity(step: Step) -> dict[str, Any]:
    """What makes a step this one: its command, and the recipe of its model."""
    recipe = step.recipe.fingerprint() if step.recipe else None
    return {"command": list(step.command), "recipe": recipe}


def _mark(out: Path, step: Step) -> Path:
    return out / STEPS / f"{step.name}.json"


def _finished(out: Path, step: Step) -> bool:
    path = _mark(out, step)
    if not path.is_file():
        return False
    found = read_json(path)
    if {name: found.get(name) for name in ("command", "recipe")} != _identity(step):
        raise ImpRAGError(
            f"{out} holds {step.name} by another command or recipe; choose another folder, or "
            f"delete {out / step.name} and {path}"
        )
    return True


def _write_prompts(predictions: Path, path: Path) -> None:
    """The prompts of an evaluation, one on each line."""
    prompts = [
        one["prompt"].replace("\n", " ") for one in RunFolder.open(predictions).predictions()
    ]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8")


def reason(out: Path, name: str) -> str:
    """The last line that a failed step wrote."""
    log = out / LOGS / f"{name}.log"
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    written = [line.split("\r")[-1].strip() for line in lines if line.strip()]
    return written[-1].removeprefix("imprag: error: ") if written else "it wrote nothing"
