"""Compares runs: differences from the first run, with confidence intervals and p-values."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from imprag.errors import ImpRAGError
from imprag.evaluation.run_folder import PREDICTIONS, RunFolder
from imprag.evaluation.scoring import RECALL_DEPTHS, summary
from imprag.evaluation.statistics import PairedTest, paired_bootstrap
from imprag.evaluation.tables import LABELS, estimate, headline, markdown_table, percent
from imprag.evaluation.trec import read_trec_run, score_trec_run
from imprag.io.files import atomic_path
from imprag.io.optional import missing


def test_cells(test: PairedTest) -> tuple[str, str]:
    """The difference with its interval, and the p-value, as tables show them."""
    low, high = (percent(bound, sign=True) for bound in test.interval)
    p = "< 0.001" if test.p_value < 0.001 else f"{test.p_value:.3f}"
    return f"{percent(test.difference, sign=True)} [{low}, {high}]", p


@dataclass(frozen=True)
class Row:
    """One metric of one task in all runs.

    Attributes:
        task, metric: names of the task and the metric.
        n: number of examples, the same in all runs.
        estimates: ``mean``, ``low`` and ``high`` of each run.
        tests: for each run but the first, the paired test against the first run.
    """

    task: str
    metric: str
    n: int
    estimates: Sequence[dict[str, float]]
    tests: Sequence[PairedTest]


@dataclass(frozen=True)
class Comparison:
    """A comparison of runs on the examples that all of them have.

    Attributes:
        runs: names of the runs; the first is the reference.
        rows: one row for each task and metric.
        notes: sentences about tasks and examples that are left out.
    """

    runs: Sequence[str]
    rows: Sequence[Row]
    notes: Sequence[str]

    def to_markdown(self) -> str:
        """The table in percent, followed by the notes."""
        header = ["task", "metric", "n", self.runs[0]]
        for run in self.runs[1:]:
            header += [run, "difference", "p"]
        rows = []
        for row in self.rows:
            cells = [row.task, LABELS[row.metric], f"{row.n:,}", estimate(row.estimates[0])]
            for value, test in zip(row.estimates[1:], row.tests, strict=True):
                cells += [estimate(value), *test_cells(test)]
            rows.append(cells)
        table = markdown_table(header, rows, texts=2)
        return table + "".join(f"\n{note}\n" for note in self.notes)

    def to_json(self) -> dict[str, Any]:
        """The comparison as JSON-like values; metrics are from 0 to 1."""
        rows = [
            {
                **{name: getattr(row, name) for name in ("task", "metric", "n", "estimates")},
                "tests": [
                    {**test._asdict(), "interval": test.interval._asdict()} for test in row.tests
                ],
            }
            for row in self.rows
        ]
        return {"runs": self.runs, "rows": rows, "notes": self.notes}

    def write_html(self, path: Path | str) -> None:
        """Write one self-contained page with the table and, with matplotlib, a plot per metric.

        Raises:
            ImpRAGError: jinja2 is missing, or the file cannot be written.
        """
        from imprag.evaluation.plots import bars
        from imprag.evaluation.report import render, require_packages

        require_packages()
        plots = {}
        shown = [] if missing("matplotlib") else [row.metric for row in self.rows]
        for metric in dict.fromkeys(shown):
            groups = {
                row.task: dict(zip(self.runs, row.estimates, strict=True))
                for row in self.rows
                if row.metric == metric
            }
            plots[LABELS[metric]] = bars(groups, LABELS[metric])
        page = render(
            "compare.html",
            comparison=self,
            plots=plots,
            labels=LABELS,
            estimate=estimate,
            test_cells=test_cells,
        )
        with atomic_path(Path(path)) as temporary:
            temporary.write_text(page, encoding="utf-8")


def compare(runs: Sequence[Path | str], metrics: Sequence[str] | None = None) -> Comparison:
    """Compare run folders, example by example.

    Only examples that all runs have are compared, and the notes say so.

    Args:
        runs: at least two folders; the first is what the others are compared with. These may also
            be TREC run files, which are scored with the gold passages of the first.
        metrics: names of the metrics to compare, as in ``results.json``; by default those of the
            short table of a run.

    Raises:
        ImpRAGError: fewer than two runs, an unknown metric, an unfinished run, runs without a
            common example, or runs in which an example has different gold answers.
    """
    if len(runs) < 2:
        raise ImpRAGError("give at least two run folders to compare")
    if unknown := [metric for metric in metrics or () if metric not in LABELS]:
        raise ImpRAGError(f"no metric {', '.join(unknown)}; there are {', '.join(LABELS)}")
    paths = [Path(run) for run in runs]
    rows: list[Row] = []
    notes: list[str] = []
    scored = [
        _read_trec(path, paths[0], notes) if path.is_file() else _read(path) for path in paths
    ]
    for task in dict.fromkeys(task for tasks in scored for task in tasks):
        if lacking := [
            str(path) for path, own in zip(paths, scored, strict=True) if task not in own
        ]:
            notes.append(f"{task} is left out: it is not in {', '.join(lacking)}.")
            continue
        examples = [tasks[task] for tasks in scored]
        common = _common(task, paths, examples)
        if any(len(own) != len(common) for own in examples):
            counts = ", ".join(f"{len(own):,}" for own in examples)
            notes.append(
                f"{task} is compared on the {len(common):,} examples that all runs have, "
                f"of {counts}."
            )
        if common:
            rows += _rows(task, [[own[id] for id in common] for own in examples], metrics)
    if not rows:
        raise ImpRAGError(f"nothing to compare: {' '.join(notes) or 'no metric is in all runs'}")
    return Comparison(_names(paths), rows, notes)


class _Scored(NamedTuple):
    """Gold answers and metrics of a prediction."""

    answers: list[str]
    metrics: dict[str, float]


def _read(path: Path) -> dict[str, dict[str, _Scored]]:
    """The predictions of a finished run, by task and id."""
    run = RunFolder.open(path)
    run.results()  # raises if the run is not finished
    tasks: dict[str, dict[str, _Scored]] = defaultdict(dict)
    for number, prediction in enumerate(run.predictions(), 1):
        if not _is_scored(prediction):
            raise ImpRAGError(
                f"{path / PREDICTIONS}, line {number} is damaged; delete {path} and evaluate again"
            )
        scored = _Scored(prediction["answers"], prediction["metrics"])
        tasks[prediction["task"]][prediction["id"]] = scored
    return tasks


def _read_trec(path: Path, reference: Path, notes: list[str]) -> dict[str, dict[str, _Scored]]:
    """The rankings of a TREC file as a run that was evaluated like the reference.

    Args:
        path: the file.
        reference: a run folder.
        notes: queries that the file or the run lacks are noted here.
    """
    if reference.is_file():
        raise ImpRAGError(f"{reference} is a file: give a run folder first, whose gold counts")
    run = RunFolder.open(reference)
    predictions = list(run.predictions())
    depth = run.recipe["settings"].get("passages", {}).get("depth", max(RECALL_DEPTHS))
    found = score_trec_run(read_trec_run(path), predictions, depth)
    for task, count in found.lacking.items():
        if count:
            notes.append(f"{path} lacks {count:,} queries of {task}: they count as nothing found.")
    if found.unknown:
        notes.append(f"{path} has {found.unknown:,} queries that are not in {reference}.")
    answers = {(one["task"], one["id"]): one["answers"] for one in predictions}
    tasks: dict[str, dict[str, _Scored]] = defaultdict(dict)
    for (task, id), metrics in found.metrics.items():
        tasks[task][id] = _Scored(answers[task, id], metrics)
    return tasks


def _is_scored(prediction: Mapping[str, Any]) -> bool:
    """Whether a prediction has well-formed gold answers and metrics."""
    metrics = prediction["metrics"]
    return (
        isinstance(prediction["task"], str)
        and isinstance(prediction["id"], str)
        and isinstance(prediction.get("answers"), list)
        and isinstance(metrics, dict)
        and all(isinstance(value, int | float) and 0 <= value <= 1 for value in metrics.values())
    )


def _common(
    task: str, paths: Sequence[Path], examples: Sequence[Mapping[str, _Scored]]
) -> list[str]:
    """Ids of examples in all runs, in the order of the first run; gold answers must be equal."""
    first, *others = examples
    common = [id for id in first if all(id in own for own in others)]
    for path, own in zip(paths[1:], others, strict=True):
        for id in common:
            if own[id].answers != first[id].answers:
                raise ImpRAGError(
                    f"example '{id}' of task '{task}' has other gold answers in {path} than in "
                    f"{paths[0]}: the runs belong to different versions of the data"
                )
    return common


def _rows(
    task: str, runs: Sequence[Sequence[_Scored]], metrics: Sequence[str] | None
) -> Iterator[Row]:
    if metrics is None:
        metrics = headline({name for one in runs[0] for name in one.metrics})
    for metric in (name for name in LABELS if name in metrics):
        # A metric may be undefined for some examples.
        values = [
            scores
            for example in zip(*runs, strict=True)
            if None not in (scores := [scored.metrics.get(metric) for scored in example])
        ]
        if values:
            first, *others = zip(*values, strict=True)
            yield Row(
                task,
                metric,
                len(values),
                [summary(scores) for scores in (first, *others)],
                [paired_bootstrap(scores, first) for scores in others],
            )


def _names(paths: Sequence[Path]) -> list[str]:
    """The folders' names if they are distinct, otherwise their paths."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]
