"""Tables and plots of :mod:`imprag.evaluation.speed`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imprag.evaluation.plots import COLORS, STYLE
from imprag.evaluation.tables import markdown_table

Rows = Sequence[Mapping[str, Any]]


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


def write_plots(rows: Rows, folder: Path) -> None:
    """``first-token.png`` and ``tokens-per-second.png``, and the same as SVG."""
    for name, label, log in (
        ("first_token", "seconds to the first token", True),
        ("tokens_per_second", "tokens per second after it", False),
    ):
        _write_plot(rows, name, label, folder / name.replace("_", "-"), log=log)


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
        figure.savefig(path.with_suffix(".png"), dpi=150)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def _tokens(row: Mapping[str, Any]) -> int:
    """In all passages."""
    return int(row["k"] * row["passage_tokens"])
