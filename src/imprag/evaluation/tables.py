"""Markdown tables that are also readable in a terminal."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from imprag.evaluation.scoring import RECALL_DEPTHS

#: Labels of all metrics in tables, in the order of their columns.
LABELS = {
    "exact_match": "exact match",
    "f1": "F1",
    "accuracy": "accuracy",
    **{f"passage_recall@{k}": f"passage recall@{k}" for k in RECALL_DEPTHS},
    "mrr": "MRR",
    "ndcg@10": "nDCG@10",
    "r_precision": "page R-precision",
    **{f"answer_recall@{k}": f"answer recall@{k}" for k in RECALL_DEPTHS},
}
#: Metrics of the short table.
HEADLINE = (
    "exact_match",
    "accuracy",
    "passage_recall@1",
    "passage_recall@10",
    "answer_recall@1",
    "answer_recall@10",
)


def percent(value: float, *, sign: bool = False) -> str:
    """A fraction in percent: 0.6123 as ``61.2``, with ``sign`` as ``+61.2``."""
    return f"{100 * value:+.1f}" if sign else f"{100 * value:.1f}"


def estimate(value: Mapping[str, float]) -> str:
    """Mean and interval: ``61.2 [58.0, 64.1]``."""
    return f"{percent(value['mean'])} [{percent(value['low'])}, {percent(value['high'])}]"


def headline(metrics: Collection[str]) -> list[str]:
    """The metrics of the short table, of those that a task has.

    A task without answers, such as BEIR's, also has its usual measure, nDCG@10.
    """
    judged = any(name.startswith(("exact_match", "accuracy", "answer_")) for name in metrics)
    short = HEADLINE if judged else (*HEADLINE, "ndcg@10")
    return [name for name in LABELS if name in short and name in metrics]


def results_table(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """The headline metrics of a run in percent, with one row per task.

    Args:
        tasks: ``tasks`` of ``results.json``.
    """
    shown = {name for task in tasks.values() for name in headline(task["metrics"])}
    names = [name for name in LABELS if name in shown]
    rows = []
    for task, result in tasks.items():
        cells = [_cell(result["metrics"].get(name), result["n"]) for name in names]
        rows.append([task, f"{result['n']:,}", *cells])
    return markdown_table(["task", "n", *(LABELS[name] for name in names)], rows)


def _cell(value: Mapping[str, float] | None, n: int) -> str:
    """A mean, with its n if the metric is undefined for some of the task's n examples."""
    if value is None:
        return ""
    mean = percent(value["mean"])
    return mean if value["n"] == n else f"{mean} (n {value['n']:,})"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A Markdown table with padded cells.

    Args:
        header: names of the columns.
        rows: cells of the rows.
        texts: number of columns with text, at the left; the others hold numbers, right-aligned.
    """
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [header, *rows]]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    rule = [
        "-" * width if column < texts else "-" * (width - 1) + ":"
        for column, width in enumerate(widths)
    ]
    lines = [
        "| "
        + " | ".join(
            cell.ljust(width) if column < texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in [cells[0], rule, *cells[1:]]
    ]
    return "\n".join(lines) + "\n"
