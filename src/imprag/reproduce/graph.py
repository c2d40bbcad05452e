"""The graph of a study: which ``imprag`` commands make its tables, in what order."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from pydantic import Field, ValidationError

from imprag.errors import ImpRAGError
from imprag.io.files import expand_home
from imprag.training.recipe import Recipe
from imprag.training.recipe_file import explain, load_recipe
from imprag.training.sources import Section

STUDY = "study.yaml"
RECIPES = "recipes"
PROMPTS = "prompts.txt"


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


def load_made_recipe(
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
        recipe = load_made_recipe(config, overrides, study.data)
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
