"""Plots as SVG, for embedding in a page."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from imprag.evaluation.scoring import RECALL_DEPTHS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

#: ``mean``, ``low`` and ``high``.
Estimate = Mapping[str, float]

# The palette of Okabe and Ito, which colour-blind readers can distinguish.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa3ad",
    "axes.labelcolor": "#3b4350",
    "axes.axisbelow": True,
    "xtick.color": "#3b4350",
    "ytick.color": "#3b4350",
    "grid.color": "#e3e7eb",
    "legend.frameon": False,
    "text.parse_math": False,  # names of tasks and runs are not formulas
    "svg.fonttype": "none",  # text remains text, in the page's font
    "svg.hashsalt": "imprag",  # equal plots have equal bytes
}
_COLUMNS = 4


def bars(groups: Mapping[str, Mapping[str, Estimate]], label: str) -> str:
    """Horizontal bars with confidence intervals.

    Args:
        groups: for each task, the estimates of the runs by their names.
        label: label of the axis; values are in percent.
    """
    import matplotlib
    from matplotlib.figure import Figure

    runs = list(dict.fromkeys(run for estimates in groups.values() for run in estimates))
    step = 0.8 / len(runs)
    with matplotlib.rc_context(STYLE):
        height = 0.9 + len(groups) * max(0.34, 0.2 * len(runs))
        figure = Figure((8, height), layout="constrained")
        axes = figure.subplots()
        for number, run in enumerate(runs):
            rows = [row for row, group in enumerate(groups.values()) if run in group]
            estimates = [group[run] for group in groups.values() if run in group]
            below = [100 * (estimate["mean"] - estimate["low"]) for estimate in estimates]
            above = [100 * (estimate["high"] - estimate["mean"]) for estimate in estimates]
            axes.barh(
                [row + (number - (len(runs) - 1) / 2) * step for row in rows],
                [100 * estimate["mean"] for estimate in estimates],
                height=step * 0.9,
                xerr=[below, above],
                color=COLORS[number % len(COLORS)],
                error_kw={"ecolor": "#3b4350", "elinewidth": 1, "capsize": 2},
                label=run,
            )
        axes.set_yticks(range(len(groups)), list(groups))
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel(f"{label}, %")
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        if len(runs) > 1:
            figure.legend(loc="outside upper left", ncols=3)
        return _svg(figure)


def recall_curves(tasks: Mapping[str, Mapping[str, Estimate]]) -> str:
    """Recall by depth, with one panel per task.

    Args:
        tasks: the metrics of each task, with ``passage_recall@k``, ``answer_recall@k`` or both.
    """
    import matplotlib
    from matplotlib.figure import Figure

    columns = min(len(tasks), _COLUMNS)
    rows = -(-len(tasks) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure((max(4, 2.6 * columns), 0.8 + 2.1 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        legend = {}
        for axes, (task, metrics) in zip(panels, tasks.items(), strict=False):
            for kind, color in zip(("passage", "answer"), COLORS, strict=False):
                names = [f"{kind}_recall@{k}" for k in RECALL_DEPTHS]
                if names[0] in metrics:
                    curve = _curve(axes, [metrics[name] for name in names], color)
                    legend[f"by {kind}"] = curve
            axes.set_title(task, fontsize=10)
            axes.set_xscale("log")
            axes.set_xticks(RECALL_DEPTHS, [str(k) for k in RECALL_DEPTHS])
            axes.minorticks_off()
            axes.set_ylim(0, 103)
            axes.grid()
        for axes in panels[len(tasks) :]:
            axes.set_visible(False)
        figure.supxlabel("passages retrieved", fontsize=10)
        figure.supylabel("recall, %", fontsize=10)
        figure.legend(legend.values(), legend.keys(), loc="outside upper left", ncols=2)
        return _svg(figure)


def risk_curves(tasks: Mapping[str, Mapping[str, float]]) -> str:
    """The risk of the answers that are given, by coverage.

    Args:
        tasks: for each task, the risk by coverage, from 0 to 1.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure((6, 3.4), layout="constrained")
        axes = figure.subplots()
        for number, (task, risk) in enumerate(tasks.items()):
            coverages = [100 * float(coverage) for coverage in risk]
            percents = [100 * value for value in risk.values()]
            axes.plot(coverages, percents, color=COLORS[number % len(COLORS)], label=task)
        axes.set_xlim(0, 100)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("prompts answered, the most confident first, %")
        axes.set_ylabel("wrong answers among them, %")
        axes.grid()
        figure.legend(loc="outside upper left", ncols=3)
        return _svg(figure)


def lines(panels: Mapping[str, Mapping[str, Sequence[tuple[float, Estimate]]]]) -> str:
    """Curves over the values of settings, with one panel per setting.

    Args:
        panels: for each setting, the curves by their names: values with their estimates.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure((max(5, 4 * len(panels)), 3.6), layout="constrained")
        legend = {}
        axes_of = figure.subplots(1, len(panels), sharey=True, squeeze=False).ravel()
        for axes, (setting, curves) in zip(axes_of, panels.items(), strict=True):
            for (name, points), color in zip(curves.items(), COLORS, strict=False):
                values = [value for value, _ in points]
                low, high, mean = (
                    [100 * point[part] for _, point in points] for part in ("low", "high", "mean")
                )
                axes.fill_between(values, low, high, color=color, alpha=0.15, linewidth=0)
                style = "o--" if name.startswith("paper") else "o-"
                legend[name] = axes.plot(values, mean, style, color=color, markersize=3)[0]
            axes.set_xlabel(setting)
            axes.set_ylim(0, 103)
            axes.grid()
        figure.supylabel("%", fontsize=10)
        figure.legend(legend.values(), legend.keys(), loc="outside upper left", ncols=2)
        return _svg(figure)


def _curve(axes: "Axes", points: Sequence[Estimate], color: str) -> "Line2D":
    low, high, mean = ([100 * point[name] for point in points] for name in ("low", "high", "mean"))
    axes.fill_between(RECALL_DEPTHS, low, high, color=color, alpha=0.15, linewidth=0)
    return axes.plot(RECALL_DEPTHS, mean, "o-", color=color, markersize=3)[0]


def _svg(figure: "Figure") -> str:
    """The ``<svg>`` element without the header of an SVG file."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]
