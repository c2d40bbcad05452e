"""A study of tiny random models."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import yaml
from tiny_runs import make_world, recipe, tiny_bert

from imprag.cli import main
from imprag.reproduce.graph import load_graph
from imprag.reproduce.run import reproduce
from imprag.reproduce.tables import make_tables

ARMS = ("ra-it", "ra-dit", "ra-dit-lm", "imprag")


def make_study(folder: Path) -> Path:
    """The four systems, one of them with two seeds, another query template, a cache, two layers."""
    world = make_world(folder / "world")
    tiny_bert(world / "bert")
    study = folder / "study"
    study.mkdir()
    main_recipe = recipe(
        world,
        data=[{"tasks": str(world / "nq.jsonl"), "task": "nq"}],
        teacher={"retriever": str(world / "bert"), "hard_negatives": [3, 6]},
        batch={"examples": 4, "positives": 1, "hard_negatives": 2, "candidates": 2},
        train={"steps": 2},
        trainer={"save_steps": 1, "save_total_limit": 1, "report_to": "none"},
    )
    (study / "imprag.yaml").write_text(main_recipe.to_yaml())
    for system in ARMS[:3]:
        (study / f"{system}.yaml").write_text(f"extends: imprag.yaml\nsystem: {system}\n")
    content = {
        "title": "A tiny study",
        "evaluations": {
            "test": {
                "options": [
                    *("--tasks", f"nq={world}/nq.jsonl", "--limit", "5", "--dtype", "float32")
                ],
                "corpus": f"{world}/corpus.jsonl",
                "recall": "answer_recall@5",
                "examples": 5,
            }
        },
        "arms": {
            **{arm: {"recipe": f"{arm}.yaml", "evaluations": ["test"]} for arm in ARMS},
            "imprag": {"recipe": "imprag.yaml", "seeds": [0, 1], "evaluations": ["test"]},
            "oracle": {
                "of": "ra-it",
                "options": ["--query-template", "oracle"],
                "evaluations": ["test"],
            },
            "half": {
                "of": "imprag",
                "kv": ["--codec", "fp32", "--kv-keep-ratio", "0.5"],
                "evaluations": ["test"],
            },
            "b1": {"recipe": "imprag.yaml", "set": ["model.b=1"], "evaluations": ["test"]},
        },
        "columns": {"nq": "NQ"},
        "unseen": ["nq"],
        "sizes": ["3B"],
        "tables": {
            "table2": {
                "title": "Table 2",
                "evaluation": "test",
                "rows": {"RA-IT": "ra-it", "RA-DIT": "ra-dit", "RA-DIT-LM": "ra-dit-lm"}
                | {"ImpRAG": "imprag"},
                "compare": [["imprag", "ra-dit-lm"]],
            },
            "table4": {"title": "Table 4", "evaluation": "test", "rows": {"oracle": "oracle"}},
            "table8": {"title": "Table 8", "evaluation": "test", "rows": {"heavy": "half"}},
            "figure2": {
                "title": "Figure 2",
                "evaluation": "test",
                "panels": {"b": {"1": "b1", "2": "imprag"}},
            },
        },
    }
    (study / "study.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return study


def in_this_process(command: Sequence[str], folder: Path, log: Path) -> int:
    """Runs an ``imprag`` command without another process, which would import everything."""
    with (
        contextlib.chdir(folder),
        open(log, "w") as stream,
        contextlib.redirect_stdout(stream),
        contextlib.redirect_stderr(stream),
    ):
        return main(list(command))


def run_study(study: Path, out: Path, cache: Path) -> None:
    """Run a study in this process, which may be killed."""
    os.environ["IMPRAG_CACHE"] = str(cache)
    graph = load_graph(study)
    make_tables(graph, out, reproduce(graph, out, run=in_this_process))
