"""The graph of a study: which ``imprag`` commands make its tables, and running what is missing.

Every step is one command, which resumes where it was interrupted. ``OUT/steps/NAME.json`` says that
a step is finished, and by which command; ``OUT/logs/NAME.log`` holds what the last attempt wrote.
"""

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from imprag.errors import ImpRAGError
from imprag.evaluation.run_folder import RunFolder
from imprag.io.files import atomic_path, expand_home, read_json, write_json
from imprag.io.locking import only_builder
from imprag.training.recipe import Recipe
from imprag.training.recipe_file import explain, load_recipe
from imprag.training.run import MODEL, RECIPE
from imprag.training.sources import Section

STUDY = "study.yaml"
STEPS, LOGS, RECIPES = "steps", "logs", "recipes"
PROMPTS = "prompts.txt"

Status = Literal["done", "failed", "waiting"]
#: Runs an ``imprag`` command in a folder, with its output in a log, and returns its exit status.
Runner = Callable[[Sequence[str], Path, Path], int]


class Evaluation(Section):
    """A set of questions that systems are evaluated on."""

    options: tuple[str, ...]
    """Options of `imprag eval`; `{wiki}` stands for the folder of `--wiki`."""

    corpus: str
    """The passages to retrieve from, as `imprag eval --corpus`."""

    recall: str = "answer_recall@10"
    """The metric that tables show as recall."""

    examples: int = 0
    """The number of questions, for the dry run."""


class Arm(Section):
    """A system that is trained, or another way to evaluate one."""

    recipe: str | None = None
    """The recipe's file."""

    of: str | None = None
    """The arm whose trained model is evaluated in another way."""

    overrides: tuple[str, ...] = Field(default=(), alias="set")
    """As `imprag train --set`."""

    seeds: tuple[int, ...] = (0,)
    """One training for each."""

    evaluations: tuple[str, ...]
    """Names of the study's evaluations."""

    options: tuple[str, ...] = ()
    """More options of `imprag eval`."""

    kv: tuple[str, ...] = ()
    """Options of `imprag kv build`: passages are read from such a cache of what is retrieved."""


class Table(Section):
    """A table of the paper: the figures of some arms."""

    title: str
    evaluation: str
    rows: dict[str, str] = Field(default={})
    """The arm of each row."""

    paper: str | None = None
    """Name of the table in `paper.yaml`; by default the table's own."""

    compare: tuple[tuple[str, str], ...] = ()
    """Pairs of arms for paired tests: the difference is the first minus the second."""

    panels: dict[str, dict[int, str]] = Field(default={})
    """For a figure instead of a table: for each setting, the arm of each value."""

    def arms(self) -> list[str]:
        """The names of all arms, in the order of rows and panels."""
        panels = [arm for panel in self.panels.values() for arm in panel.values()]
        return list(dict.fromkeys([*self.rows.values(), *panels]))


class Study(Section):
    """What is compared."""

    title: str
    data: dict[str, tuple[str, ...]] = Field(default={})
    """Folders that are made first, and the arguments of `imprag` that make them."""

    required: dict[str, str] = Field(default={})
    """Files that must be there, and the command that gets each."""

    evaluations: dict[str, Evaluation]
    arms: dict[str, Arm]
    tables: dict[str, Table]
    columns: dict[str, str] = Field(default={})
    """The paper's column that each task stands for."""

    unseen: tuple[str, ...] = ()
    """Tasks of formats that no arm is trained on; paired tests join them."""

    devices: int = 1
    """Devices that the dry run assumes."""

    flops: float = 4e14
    """FLOPs per second that the dry run assumes of each."""

    sizes: tuple[str, ...] = ()
    """The paper's model sizes, whose figures stand beside ours."""


@dataclass(frozen=True)
class Step:
    """One command of the graph.

    Attributes:
        name: the step's name, such as ``train/ra-it-0``.
        command: arguments of ``imprag``, run in the study's folder.
        needs: names of the steps that come first.
        recipe: the recipe of the model.
        prompts: of a KV cache, the predictions whose prompts it is made for.
        evaluation: of an evaluation or a KV cache, the evaluation's name.
    """

    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    recipe: Recipe | None = None
    prompts: str | None = None
    evaluation: str | None = None

    @property
    def kind(self) -> str:
        """``data``, ``train``, ``index``, ``kv`` or ``eval``."""
        return self.name.partition("/")[0]


@dataclass
class Graph:
    """The steps of a study in an order in which they can run.

    Attributes:
        folder: the folder of the study and its recipes.
        study: the study.
        steps: by name.
        notes: sentences about what is left out.
        tables: names of the tables that are made.
    """

    folder: Path
    study: Study
    tables: tuple[str, ...]
    steps: dict[str, Step] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def missing(self) -> dict[str, str]:
        """Files that the study requires and that are missing, each with the command that gets it.

        Files are looked for in the recipes' folder, then in the working folder.
        """
        return {
            name: how
            for name, how in self.study.required.items()
            if not any((place / name).exists() for place in (self.folder, Path.cwd()))
        }


def find_study(name: str | Path) -> Path:
    """The folder of a study: `small`, `paper`, or one with a ``study.yaml``.

    Raises:
        ImpRAGError: there is no such study.
    """
    own = Path(__file__).parent / str(name)
    folder = own if own.is_dir() and str(name).isalpha() else expand_home(name).resolve()
    if not (folder / STUDY).is_file():
        raise ImpRAGError(f"no study {name}: give small, paper, or a folder with a {STUDY}")
    return folder


def load_graph(name: str | Path, *, only: Sequence[str] = (), wiki: Path | None = None) -> Graph:
    """The steps that a study's tables need.

    Args:
        name: `small`, `paper` or a folder.
        only: names of tables; by default all.
        wiki: a folder with ``wiki_passages.jsonl.gz`` and ``wiki_questions.jsonl.gz``. Without it,
            evaluations with ``{wiki}`` are left out.

    Raises:
        ImpRAGError: there is no such study or table, or a recipe or the study is wrong.
    """
    folder = find_study(name)
    study = _read(folder / STUDY)
    if unknown := [table for table in only if table not in study.tables]:
        raise ImpRAGError(f"no table {unknown[0]}; there are {', '.join(study.tables)}")
    places = {"wiki": None if wiki is None else expand_home(wiki).resolve()}
    asking = {n: (*one.options, one.corpus) for n, one in study.evaluations.items()}
    left_out = [n for n, texts in asking.items() if not wiki and "{wiki}" in " ".join(texts)]
    shown = {n: one for n, one in study.tables.items() if not only or n in only}
    kept = {n: one for n, one in shown.items() if one.evaluation not in left_out}
    graph = Graph(folder, study, tuple(kept))
    if wiki is None and len(kept) < len(shown):
        names = ", ".join(n for n in shown if n not in kept)
        graph.notes.append(f"{names}: left out without --wiki, a folder of Wikipedia questions.")
    for target, command in study.data.items():
        step = f"data/{target}"
        graph.steps[step] = Step(step, (*command, "--out", target))
    for table in kept.values():
        steps = [one for arm in table.arms() for one in _arm(graph, arm, table.evaluation, places)]
        # All arms with one seed can be compared early.
        for made in sorted(steps, key=lambda one: one.recipe.seed if one.recipe else 0):
            graph.steps.setdefault(made.name, made)
    return graph


def _read(path: Path) -> Study:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        study = Study.model_validate_json(json.dumps(content), strict=True)
    except yaml.YAMLError as error:
        raise ImpRAGError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise ImpRAGError(f"{path}: {explain(error, Study)}") from error
    for name, table in study.tables.items():
        for arm in table.arms():
            if arm not in study.arms:
                raise ImpRAGError(f"{path}: {name} names the arm {arm}, which there is not")
            if table.evaluation not in study.arms[arm].evaluations:
                raise ImpRAGError(f"{path}: {arm} is not evaluated on {table.evaluation}")
    for name, arm_ in study.arms.items():
        if (arm_.recipe is None) == (arm_.of is None) or arm_.of not in (None, *study.arms):
            raise ImpRAGError(f"{path}: the arm {name} needs a recipe, or of: another arm")
    return study


def _located(text: str, places: Mapping[str, Path | None], folder: Path) -> str:
    """A corpus or ``TASK=FILE`` with its folders filled in, and the whole path of a file.

    Steps run in the study's folder ``OUT``; files are looked for next to the recipes, then in the
    working folder, as those of recipes are.
    """
    text = _filled(text, places)
    task, equals, file = text.rpartition("=")
    for place in (folder, Path.cwd()):
        if "/" in file and (place / file).exists():
            return f"{task}{equals}{(place / file).resolve()}"
    return text


def _filled(text: str, places: Mapping[str, Path | None]) -> str:
    """A text with folders in place of names such as ``{wiki}``."""
    for name, path in places.items():
        text = text.replace("{" + name + "}", str(path))
    return text


def _load_recipe(
    path: Path, overrides: Sequence[str], made: Iterable[str], base: Path = Path()
) -> Recipe:
    """A recipe whose data that the study makes is in the study's folder, wherever it is read.

    Args:
        path, overrides: as for `load_recipe`.
        made: the names of the data in the study's folder.
        base: the folder that the recipe's paths lead to.
    """
    text = load_recipe(path, overrides).model_dump_json()
    for name in made:
        text = text.replace(json.dumps(str((base / name).resolve())), json.dumps(name))
    return Recipe.model_validate_json(text, strict=True)


def _arm(
    graph: Graph, name: str, evaluation: str, places: Mapping[str, Path | None]
) -> Iterator[Step]:
    """The steps that train an arm and evaluate it."""
    study = graph.study
    arm = study.arms[name]
    root = name if arm.of is None else arm.of
    trained = study.arms[root]
    asked = study.evaluations[evaluation]
    corpus = _located(asked.corpus, places, graph.folder)
    options = [
        _located(text, places, graph.folder) if "=" in text else _filled(text, places)
        for text in asked.options
    ]
    data = tuple(f"data/{target}" for target in study.data)
    config = graph.folder / (trained.recipe or "")
    for seed in trained.seeds:
        run = f"{root}-{seed}"
        overrides = (*trained.overrides, f"trainer.seed={seed}")
        recipe = _load_recipe(config, overrides, study.data)
        command: tuple[str, ...] = ("train", "--config", f"{RECIPES}/{run}.yaml", "--resume")
        train = Step(f"train/{run}", (*command, "--out", f"train/{run}"), data, recipe)
        yield train
        model = ("--model", f"train/{run}/model")
        where: tuple[str, ...] = ("--corpus", corpus)
        needs = (train.name,)
        if recipe.system == "imprag":
            index = f"index/{run}-{Path(corpus).name}"
            where = ("--index", index)
            make = ("index", corpus, *model, "--out", index)
            yield Step(index, make, needs, recipe)
            needs = (index,)
        ask = ("eval", *model, *where, *options)
        plain = f"eval/{run}-{evaluation}"
        yield Step(plain, (*ask, "--out", plain), needs, recipe, evaluation=evaluation)
        if arm.of is not None:
            other = f"eval/{name}-{seed}-{evaluation}"
            if arm.kv:
                cache = f"kv/{name}-{seed}-{evaluation}"
                found = ("--prompts", f"{cache}-{PROMPTS}", "--top-passages", "1000000")
                build = ("kv", "build", *model, *where, *arm.kv, *found, "--out", cache)
                yield Step(cache, build, (plain,), recipe, prompts=plain, evaluation=evaluation)
                needs, ask = (cache,), (*ask, "--kv-cache", cache)
            command = (*ask, *arm.options, "--out", other)
            yield Step(other, command, needs, recipe, evaluation=evaluation)
        elif arm.options:
            raise ImpRAGError(f"the arm {name} is trained, so its options have no effect: use of")


# Running


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
                return process.wait()
            except BaseException:
                process.terminate()
                raise

    return run


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
        trained = _load_recipe(out / step.name / RECIPE, (), made, base=out)
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
