"""Ratios, growth, tables and plots of :mod:`imprag.evaluation.speed`."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imprag.evaluation.plots import COLORS, STYLE
from imprag.evaluation.speed_arms import CODED, COMPILED, LIVE, RAG, stored
from imprag.evaluation.tables import markdown_table
from imprag.io.files import write_json
from imprag.io.optional import missing

Rows = Sequence[Mapping[str, Any]]


def ratios(rows: Rows, codec: str = "bf16") -> dict[str, float]:
    """ImpRAG's figures as shares of in-context RAG's, for ten passages of 128 tokens.

    Times and bytes below 1, tokens per second above 1 are in ImpRAG's favour.
    """
    at = {row["arm"]: row for row in rows if (row["k"], row["passage_tokens"]) == (10, 128)}
    if RAG not in at:
        return {}

    def share(arm: str, what: str, base: str = RAG) -> float:
        if arm not in at or base not in at or not at[base][what]:
            return math.nan
        return float(at[arm][what] / at[base][what])

    reads = stored(codec)
    found = {
        "ttft_stored_vs_rag": share(reads, "first_token"),
        "ttft_live_vs_rag": share(LIVE, "first_token"),
        "decode_vs_rag": share(reads, "tokens_per_second"),
        "kv_bytes_vs_rag": share(reads, "kv_bytes"),
        "memory_vs_rag": share(reads, "memory"),
    }
    if reads + COMPILED in at:
        rate = "tokens_per_second"
        found["decode_compiled_vs_rag"] = share(reads + COMPILED, rate)
        found["decode_compiled_vs_rag_compiled"] = share(reads + COMPILED, rate, RAG + COMPILED)
    if CODED in at:
        found["kv_bytes_pq_vs_rag"] = share(CODED, "kv_bytes")
    return {name: value for name, value in found.items() if not math.isnan(value)}


def growth(rows: Rows) -> dict[str, float]:
    """How the time to the first token grows with the passages' tokens: the log-log slope by arm."""
    slopes = {}
    for name in dict.fromkeys(row["arm"] for row in rows):
        points = [
            (math.log(row["k"] * row["passage_tokens"]), math.log(row["first_token"]))
            for row in rows
            if row["arm"] == name and row["k"]
        ]
        if len({x for x, _ in points}) > 1:
            slope = statistics.linear_regression(*zip(*points, strict=True)).slope
            slopes[name] = slope
    return slopes


def write_results(
    rows: Rows, failures: Rows, environment: Mapping[str, Any], folder: Path
) -> list[Path]:
    """Write ``speed.json``, ``speed.md`` and, where matplotlib is installed, the plots.

    Args:
        rows, failures: what :func:`imprag.evaluation.speed.benchmark` returned.
        environment: what the figures depend on.
        folder: where the files are written.

    Returns:
        the files.
    """
    results = {
        "ratios": ratios(rows),
        "growth": growth(rows),
        "rows": rows,
        "failures": failures,
        "environment": environment,
    }
    files = [folder / "speed.json", folder / "speed.md"]
    write_json(files[0], results)
    files[1].write_text(table(rows), encoding="utf-8")
    if not missing("matplotlib"):
        files += write_plots(rows, folder)
    return files


def table(rows: Rows) -> str:
    """All measurements as a Markdown table."""
    header = [
        "passages",
        "arm",
        "first token, s",
        "tokens/s after it",
        "all, s",
        "peak memory, MB",
        "KV held, MB",
        "stored a passage, KB",
    ]
    cells = [
        [
            f"{row['k']} x {row['passage_tokens']}",
            row["arm"],
            f"{row['first_token']:.3f}",
            f"{row['tokens_per_second']:.1f}",
            f"{row['total']:.3f}",
            f"{row['memory'] / 1e6:.0f}",
            f"{row['kv_bytes'] / 1e6:.2f}",
            "" if row["memory_bytes"] is None else f"{row['memory_bytes'] / 1e3:.0f}",
        ]
        for row in rows
    ]
    return markdown_table(header, cells, texts=2)


def write_plots(rows: Rows, folder: Path) -> list[Path]:
    """Write ``first-token.png`` and ``tokens-per-second.png``, and the same as SVG.

    Returns:
        the PNG files.
    """
    files = []
    for name, label, log in (
        ("first_token", "seconds to the first token", True),
        ("tokens_per_second", "tokens per second after it", False),
    ):
        files.append(folder / f"{name.replace('_', '-')}.png")
        _write_plot(rows, name, label, files[-1], log=log)
    return files


def _write_plot(rows: Rows, value: str, label: str, path: Path, *, log: bool) -> None:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    with matplotlib.rc_context(STYLE):
        figure = Figure((7, 4), layout="constrained")
        axes = figure.subplots()
        arms = list(dict.fromkeys(row["arm"] for row in rows))
        for number, arm in enumerate(arms):
            points = sorted((_tokens(row), row[value]) for row in rows if row["arm"] == arm)
            again, color = divmod(number, len(COLORS))
            axes.plot(
                *zip(*points, strict=True),
                marker="o",
                ms=3,
                lw=1,
                ls="--" if again else "-",
                label=arm,
                color=COLORS[color],
            )
        axes.set_xscale("log")
        lengths = sorted({_tokens(row) for row in rows})
        axes.set_xticks(lengths, [str(length) for length in lengths], fontsize=8)
        axes.set_xticks([], minor=True)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
        else:
            axes.set_ylim(0)
        axes.grid(True)
        axes.set_xlabel("tokens in all passages")
        axes.set_ylabel(label)
        axes.legend(fontsize=8)
        figure.savefig(path, dpi=150)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def _tokens(row: Mapping[str, Any]) -> int:
    """In all passages."""
    return int(row["k"] * row["passage_tokens"])
