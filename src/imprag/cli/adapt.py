"""``imprag adapt``."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from imprag.cli.console import print_json
from imprag.cli.options import Device, Json, Model, Names, refuse_without_effect

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imprag.training.adapt import SourceRecall
    from imprag.training.adapt_gate import GateFit, Recall

MEANINGFUL = 50
"""The number of prompts below which figures differ by chance alone."""

Kind = Literal[
    "question", "assertion", "lookup", "keywords", "title", "mention", "cloze", "statement"
]


def adapt(
    *,
    out: Path,
    model: Model = "default",
    index: Path | None = None,
    synthetic: Annotated[list[Kind] | None, Parameter(consume_multiple=True, negative="")] = None,
    tasks: Names = None,
    data: Path | None = None,
    limit: int = 20_000,
    steps: int = 1000,
    wise_ft_alpha: float = 1.0,
    max_rank: int | None = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Fit a model's queries to a corpus in minutes; its index stays valid.

    Trains only layer b's query projection, on prompts that are made from the passages and on your
    own questions if you give any. A share of the prompts, the first of each kind, is held back;
    recall on these is shown before and after. Rerun the same command after an interruption: hidden
    states that were computed are reused.

    If the model has a gate for hybrid retrieval, it is fitted again on held-back questions of
    `--tasks`; it stays as it is where that finds no more, by questions that it was not fitted on.

    Figures of fewer than 50 prompts mean little, and prompts made from passages are easier than
    people's questions: give some with `--tasks`.

    For example:

    - `imprag adapt --out adapted` fits the default model to its own corpus.
    - `imprag adapt --index my-index --out my-model`
    - `imprag adapt --index my-index --tasks nq=my-questions.jsonl --out my-model`
    - `imprag adapt --data factbook-bench --tasks factbook/qa --out run`

    Args:
        out: The model folder to make, for `--model` of every other command.
        index: The index folder to fit to, made by `imprag index` with the same model or with a
            model that this command made from it. If not given, the model's own.
        synthetic: Kinds of prompts that are made from the passages; if not given, every kind that
            the passages give.
        tasks: Training questions with their gold passages: tasks of `--data`, or `TASK=FILE`, as
            for `imprag eval`. The split is `train`.
        data: The benchmark folder that `--tasks` names tasks of.
        limit: Greatest number of prompts of each kind and task. Lower it to save time.
        steps: Optimizer steps of 256 prompts each.
        wise_ft_alpha: Saved weights = (1 - alpha) · initial + alpha · trained. .75 costs this
            corpus little and preserves more of the model on other passages and prompts.
        max_rank: If the model is an adapter, the greatest rank of what is added to it; unlimited if
            not given. A low rank makes the folder smaller.
        json: Print the results as one JSON object instead of a table.
    """
    from dataclasses import asdict

    from imprag.evaluation.tables import markdown_table
    from imprag.io.optional import require

    require("training", "train", "pydantic", "accelerate")
    from imprag.training.adapt_run import adapt_model

    if not tasks:
        refuse_without_effect("without --tasks", data=data)
    found = adapt_model(
        model,
        index,
        out,
        kinds=synthetic,
        tasks=tasks or (),
        data=data,
        limit=limit,
        steps=steps,
        wise_ft_alpha=wise_ft_alpha,
        max_rank=max_rank,
        device=device,
    )
    recalls, gate = found.recalls, found.gate
    notes = _notes(recalls, asked=bool(tasks)) + _gate_notes(gate)
    if json:
        hybrid = gate and {
            "questions": gate.questions,
            "before": gate.before,
            "after": gate.after,
            "refitted": gate.gate is not None,
        }
        recalled = [asdict(one) for one in recalls]
        print_json({"model": str(out), "recall": recalled, "hybrid": hybrid, "notes": notes})
        return
    rows: list[tuple[str, int, Recall, Recall]] = [
        (one.source, one.prompts, one.before, one.after) for one in recalls
    ]
    if gate is not None:
        rows.append(("all tasks, hybrid", gate.questions, gate.before, gate.after))
    print(
        markdown_table(
            ["kind of prompt", "held back", "R@1 before", "after", "R@10 before", "after"],
            [
                [
                    name,
                    f"{prompts:,}",
                    *(f"{100 * share[n]:.1f}" for n in (0, 1) for share in (before, after)),
                ]
                for name, prompts, before, after in rows
            ],
        ),
        end="",
    )
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"model: {out}", file=sys.stderr)


def _notes(recalls: "Sequence[SourceRecall]", *, asked: bool) -> list[str]:
    """Warnings about the figures.

    Args:
        recalls: the rows of the table.
        asked: whether people's questions are among the prompts.
    """
    notes = []
    if few := [one for one in recalls if one.prompts < MEANINGFUL]:
        counts = ", ".join(f"{one.source} ({one.prompts:,})" for one in few)
        notes.append(
            f"fewer than {MEANINGFUL} prompts were held back of {counts}: these figures mean little"
        )
    if not asked:
        notes.append(
            "all prompts were made from the passages; questions that people ask, given by --tasks, "
            "tell more about what they will find"
        )
    return notes


def _gate_notes(gate: "GateFit | None") -> list[str]:
    from imprag.training.adapt_gate import FEWEST_QUESTIONS

    if gate is None:
        return []
    if gate.gate is not None:
        return ["hybrid retrieval has a new gate"]
    if gate.usable < FEWEST_QUESTIONS:
        return [
            f"the gate of hybrid retrieval stays as it is: fitting takes {FEWEST_QUESTIONS} "
            f"held-back questions whose passages are among the candidates, and there are "
            f"{gate.usable}"
        ]
    return ["the gate of hybrid retrieval stays as it is: a new one finds no more"]
