"""The tables of a study in the paper's layout, as Markdown, JSON and one self-contained page."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from imprag.errors import ImpRAGError
from imprag.evaluation.compare import test_cells
from imprag.evaluation.plots import lines
from imprag.evaluation.report import render
from imprag.evaluation.run_folder import RESULTS, RunFolder
from imprag.evaluation.scoring import summary
from imprag.evaluation.statistics import paired_bootstrap
from imprag.evaluation.tables import estimate, markdown_table, percent
from imprag.io.files import atomic_path, write_json
from imprag.io.optional import missing
from imprag.reproduce.graph import Graph, Table
from imprag.reproduce.run import Status, reason
from imprag.training.run import training_time

TABLES = "tables"
_EXACT = ("exact_match", "accuracy")
_UNSEEN = "unseen formats"
_MISSING = "–"

#: Scores of every example of a task, by its id; means over the seeds.
Scores = Mapping[str, float]


@dataclass(frozen=True)
class Results:
    """What an arm scored on an evaluation.

    Attributes:
        arm: the arm.
        exact, recall: scores of each task.
        seeds: the seeds that are there.
        lacking: sentences about steps that are not finished.
    """

    arm: str
    exact: Mapping[str, Scores]
    recall: Mapping[str, Scores]
    seeds: Sequence[int]
    lacking: Sequence[str]


def make_tables(
    graph: Graph, out: Path, status: Mapping[str, Status], asked: Collection[str] = ()
) -> dict[str, Any]:
    """Write ``tables.md``, ``tables.json`` and ``tables.html`` from the finished steps.

    Args:
        graph: the study's steps.
        out: the study's folder.
        status: the status of each step.
        asked: tables that are written even if nothing of them is there; by default all.

    Returns:
        the content of ``tables.json``.
    """
    paper = yaml.safe_load((Path(__file__).parent / "paper.yaml").read_text(encoding="utf-8"))

    @cache
    def results(arm: str, evaluation: str) -> Results:
        return _results(graph, out, status, arm, evaluation)

    tables = []
    for name in graph.tables:
        table = graph.study.tables[name]
        found = {arm: results(arm, table.evaluation) for arm in table.arms()}
        if asked and name not in asked and not any(one.seeds for one in found.values()):
            continue
        figures = paper.get(table.paper or name, {})
        content: dict[str, Any] = {"name": name, "title": table.title}
        if table.panels:
            content["panels"] = _panels(table, found, figures)
        else:
            content |= _rows(graph, table, found, figures)
        content["tests"] = [one for pair in table.compare for one in _tests(graph, found, *pair)]
        content["missing"] = list(dict.fromkeys(w for one in found.values() for w in one.lacking))
        tables.append(content)
    made = {
        "title": graph.study.title,
        "notes": graph.notes,
        "tables": tables,
        "arms": list(_arms(graph, out)),
    }
    write_json(out / f"{TABLES}.json", made)
    with atomic_path(out / f"{TABLES}.md") as temporary:
        temporary.write_text(markdown(made), encoding="utf-8")
    if not missing("jinja2"):
        plots = {}
        if not missing("matplotlib"):
            plots = {one["name"]: _plots(one["panels"]) for one in tables if "panels" in one}
        page = render(f"{TABLES}.html", made=made, plots=plots, test_cells=_test_cells)
        with atomic_path(out / f"{TABLES}.html") as temporary:
            temporary.write_text(page, encoding="utf-8")
    return made


def _results(
    graph: Graph, out: Path, status: Mapping[str, Status], arm: str, evaluation: str
) -> Results:
    """The scores of an arm, each example's averaged over the seeds."""
    study = graph.study
    root = study.arms[arm].of or arm
    recall = study.evaluations[evaluation].recall
    scores: dict[str, dict[str, dict[str, list[float]]]] = {
        kind: defaultdict(lambda: defaultdict(list)) for kind in ("exact", "recall")
    }
    seeds, lacking = [], []
    for seed in study.arms[root].seeds:
        step = f"eval/{arm}-{seed}-{evaluation}"
        if status[step] != "done" or not (out / step / RESULTS).is_file():
            lacking.append(_why(graph, out, status, step))
            continue
        seeds.append(seed)
        for prediction in RunFolder.open(out / step).predictions():
            metrics = prediction["metrics"]
            task, id = prediction["task"], prediction["id"]
            exact = next((metrics[name] for name in _EXACT if name in metrics), None)
            if exact is not None:
                scores["exact"][task][id].append(exact)
            if recall in metrics:
                scores["recall"][task][id].append(metrics[recall])
    means = {
        kind: {task: {id: fmean(v) for id, v in one.items()} for task, one in of_kind.items()}
        for kind, of_kind in scores.items()
    }
    return Results(arm, means["exact"], means["recall"], seeds, lacking)


def _why(graph: Graph, out: Path, status: Mapping[str, Status], step: str) -> str:
    """Why a step is not finished: it or a step that it needs failed, or was not run yet."""
    for need in graph.steps[step].needs:
        if status[need] != "done":
            return f"{_why(graph, out, status, need)}; {step} needs it"
    if status[step] == "failed":
        return f"{step} failed: {reason(out, step)}"
    return f"{step} was not run yet"


def _rows(
    graph: Graph, table: Table, found: Mapping[str, Results], figures: Mapping[str, Any]
) -> dict[str, Any]:
    """Columns and rows of a table: ours, and the paper's below each."""
    stands_for = graph.study.columns
    tasks = list(dict.fromkeys(task for one in found.values() for task in one.exact))
    columns = [{"task": task, "paper": stands_for.get(task, "")} for task in tasks]
    if not columns:
        columns = [{"task": name, "paper": name} for name in figures.get("columns", [])]
    names = figures.get("columns", [])
    rows: list[dict[str, Any]] = []
    for label, arm in table.rows.items():
        ours = found[arm]
        cells = [_cell(ours, column["task"]) for column in columns]
        root = graph.study.arms[arm].of or arm
        trained = f"{root}-{graph.study.arms[root].seeds[0]}"
        rows.append({"label": label, "trained": trained, "seeds": len(ours.seeds), "cells": cells})
        for size in graph.study.sizes:
            reported = figures.get("rows", {}).get(f"{size} {label}".strip())
            if reported is not None:
                by_name = dict(zip(names, reported, strict=True))
                texts = [{"text": by_name.get(column["paper"], "")} for column in columns]
                name = f"{label}, paper ({size})" if size else f"{label}, paper"
                rows.append({"label": name, "trained": None, "cells": texts})
    return {"columns": columns, "rows": rows}


def _cell(results: Results, task: str) -> dict[str, Any]:
    """Exact match with its interval, and recall, of one task."""
    if task not in results.exact:
        return {"text": _MISSING}
    exact = summary(list(results.exact[task].values()))
    text = estimate(exact)
    cell: dict[str, Any] = {"exact_match": exact}
    if task in results.recall:
        cell["recall"] = summary(list(results.recall[task].values()))
        text += f" ({percent(cell['recall']['mean'])})"
    return {**cell, "text": text}


def _panels(
    table: Table, found: Mapping[str, Results], figures: Mapping[str, Any]
) -> dict[str, Any]:
    """For each setting, our points and the paper's: value, exact match and recall, in fractions."""
    panels: dict[str, Any] = {}
    for setting, arms in table.panels.items():
        ours = []
        for value, arm in sorted(arms.items()):
            for task in found[arm].exact:
                cell = _cell(found[arm], task)
                ours.append({"value": value, "arm": arm, "task": task, **cell})
        reported = [
            {"value": value, "exact_match": exact / 100, "recall": recall / 100}
            for value, (exact, recall) in sorted(figures.get(setting, {}).items())
        ]
        panels[setting] = {"ours": ours, "paper": reported}
    return panels


def _plots(panels: Mapping[str, Any]) -> str:
    """The panels of a figure as SVG."""
    curves: dict[str, dict[str, list[tuple[float, Mapping[str, float]]]]] = {}
    for setting, panel in panels.items():
        points = curves.setdefault(setting, {})
        for kind, label in (("exact_match", "exact match"), ("recall", "recall")):
            points[f"ours, {label}"] = [
                (one["value"], one[kind]) for one in panel["ours"] if kind in one
            ]
            points[f"paper, {label}"] = [
                (one["value"], dict.fromkeys(("mean", "low", "high"), one[kind]))
                for one in panel["paper"]
            ]
    return lines(curves)


def _tests(
    graph: Graph, found: Mapping[str, Results], first: str, second: str
) -> Iterator[dict[str, Any]]:
    """Paired tests of two arms on exact match: each task, and the unseen formats together."""
    if not {first, second} <= found.keys():
        raise ImpRAGError(f"{first} and {second} are compared, but are not rows of the same table")
    pairs: dict[str, list[tuple[float, float]]] = {}
    for task, ours in found[first].exact.items():
        theirs = found[second].exact.get(task, {})
        if common := [(ours[id], theirs[id]) for id in ours if id in theirs]:
            pairs[task] = common
    joined = [pair for task, own in pairs.items() if task in graph.study.unseen for pair in own]
    if joined:
        pairs[_UNSEEN] = joined
    for task, own in pairs.items():
        test = paired_bootstrap(*zip(*own, strict=True))
        yield {
            "first": first,
            "second": second,
            "task": task,
            "n": len(own),
            "difference": test.difference,
            "interval": list(test.interval),
            "p_value": test.p_value,
        }


def _arms(graph: Graph, out: Path) -> Iterator[dict[str, Any]]:
    """What was trained: the recipe, the command, steps, tokens and hours of each arm."""
    for step in graph.steps.values():
        if step.recipe is None or step.kind != "train":
            continue
        run = out / step.name
        arm: dict[str, Any] = {
            "name": step.name.removeprefix("train/"),
            "command": "imprag " + " ".join(step.command),
            "recipe": step.recipe.to_yaml(),
        }
        for part, folder in (("reader", run), ("retriever", run / "retriever")):
            try:
                arm[part] = training_time(folder)
            except ImpRAGError:
                arm[part] = None
        yield arm


# Markdown


def markdown(made: Mapping[str, Any]) -> str:
    """The tables as Markdown."""
    return "\n".join(_markdown(made))


def _markdown(made: Mapping[str, Any]) -> Iterator[str]:
    yield f"# {made['title']}\n"
    yield (
        "Exact match (accuracy for True/False) in percent with its 95 % bootstrap interval, and in "
        "brackets retrieval recall by answer substring. Each example's score is the mean over the "
        "seeds. Paper: arXiv 2506.02279.\n"
    )
    for note in made["notes"]:
        yield f"{note}\n"
    for table in made["tables"]:
        yield f"## {table['title']}\n"
        if "panels" in table:
            for setting, panel in table["panels"].items():
                rows = [[str(one["value"]), one["text"]] for one in panel["ours"]]
                rows += [
                    [
                        f"{one['value']}, paper",
                        f"{percent(one['exact_match'])} ({percent(one['recall'])})",
                    ]
                    for one in panel["paper"]
                ]
                yield markdown_table([setting, "exact match (recall)"], rows)
        else:
            heads = [_head(column) for column in table["columns"]]
            rows = [[row["label"], *(c["text"] for c in row["cells"])] for row in table["rows"]]
            yield markdown_table(["", *heads], rows)
        if table["tests"]:
            rows = [
                [f"{t['first']} − {t['second']}", t["task"], f"{t['n']:,}", *_test_cells(t)]
                for t in table["tests"]
            ]
            yield markdown_table(["paired test", "task", "n", "difference", "p"], rows, texts=2)
        for lacking in table["missing"]:
            yield f"- missing: {lacking}"
        if table["missing"]:
            yield ""
    yield "## What was trained\n"
    rows = [[arm["name"], _spent(arm["reader"]), _spent(arm["retriever"])] for arm in made["arms"]]
    yield markdown_table(["arm and seed", "model", "separate retriever"], rows)
    for arm in made["arms"]:
        yield f"- {arm['name']}: `{arm['command']}`"
    yield ""


def _head(column: Mapping[str, str]) -> str:
    task, paper = column["task"], column["paper"]
    return f"{task} ({paper})" if paper and paper != task else task


def _spent(run: Mapping[str, Any] | None) -> str:
    if run is None:
        return ""
    return f"{run['steps']:,} steps, {run['tokens']:,} tokens, {run['hours']:.2f} h"


def _test_cells(test: Mapping[str, Any]) -> tuple[str, str]:
    """The difference with its interval and the p-value of a test."""
    from imprag.evaluation.statistics import Interval, PairedTest

    interval = Interval(*test["interval"])
    return test_cells(PairedTest(test["difference"], interval, test["p_value"]))
