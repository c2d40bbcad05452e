"""``report.html``: a run as one self-contained page, which needs no other files and no network."""

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from imprag.evaluation.run_folder import Prediction, RunFolder
from imprag.evaluation.scoring import RECALL_DEPTHS
from imprag.evaluation.tables import LABELS, percent
from imprag.io.files import atomic_path
from imprag.io.optional import missing, note_without, require
from imprag.tasks.matching import contains_answer

if TYPE_CHECKING:
    from imprag.corpus import Corpus

REPORT = "report.html"
_TABLES = {
    "Answers": ["exact_match", "f1", "accuracy"],
    "Retrieval of the gold passages": [
        *(f"passage_recall@{k}" for k in RECALL_DEPTHS),
        "mrr",
        "ndcg@10",
        "r_precision",
    ],
    "Retrieval of passages that contain an answer": [f"answer_recall@{k}" for k in RECALL_DEPTHS],
}
#: An example is correct if the first of these metrics that it has is 1.
_DECISIVE = ("exact_match", "accuracy", "passage_recall@10", "answer_recall@10")
_SAMPLES = 3
_SHOWN_PASSAGES = 5


def require_packages() -> None:
    """Check the packages that reports need; print a note if reports will have no plots.

    Raises:
        ImpRAGError: a required package is missing.
    """
    require("a report", "eval", "jinja2")
    note_without("plots in the report", "eval", "matplotlib")


def write_report(run: RunFolder, corpus: "Corpus | None") -> None:
    """Write ``report.html`` into a finished run folder.

    Args:
        run: the run.
        corpus: the corpus of the predictions' passages.
    """
    from imprag.evaluation.plots import bars, recall_curves, risk_curves

    plots = not missing("matplotlib")
    tasks = run.results()["tasks"]
    metrics = {task: result["metrics"] for task, result in tasks.items()}
    answers = {
        task: {"": values[name]}
        for task, values in metrics.items()
        for name in ("exact_match", "accuracy")
        if name in values
    }
    recalls = {
        task: values
        for task, values in metrics.items()
        if {"passage_recall@1", "answer_recall@1"} & values.keys()
    }
    confidences = {
        task: result["confidence"] for task, result in tasks.items() if "confidence" in result
    }
    curves = {task: found["risk"] for task, found in confidences.items()}
    page = render(
        "report.html",
        title=run.path.resolve().name,
        settings=run.recipe["settings"],
        tasks=tasks,
        tables={title: _columns(names, metrics) for title, names in _TABLES.items()},
        labels=LABELS,
        answer_plot=bars(answers, "exact match or accuracy") if answers and plots else "",
        recall_plot=recall_curves(recalls) if recalls and plots else "",
        confidences=confidences,
        risk_plot=risk_curves(curves) if curves and plots else "",
        samples=_samples(run, corpus),
        recipe=yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True),
    )
    with atomic_path(run.path / REPORT) as temporary:
        temporary.write_text(page, encoding="utf-8")


def render(template: str, **values: Any) -> str:
    """Render a page from the folder ``templates``; all values except plots are escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    return environment.get_template(template).render(**values)


def _columns(names: list[str], metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The metrics of a table that at least one task has."""
    return [name for name in names if any(name in values for values in metrics.values())]


def _samples(run: RunFolder, corpus: "Corpus | None") -> dict[str, dict[str, list[Prediction]]]:
    """Correct and wrong examples of each task, sampled with a fixed seed."""
    lines: dict[str, dict[bool, list[int]]] = defaultdict(lambda: {True: [], False: []})
    for number, prediction in enumerate(run.predictions()):
        lines[prediction["task"]][_is_correct(prediction)].append(number)
    generator = random.Random(0)
    chosen = {
        number
        for groups in lines.values()
        for numbers in groups.values()
        for number in generator.sample(numbers, min(_SAMPLES, len(numbers)))
    }
    samples: dict[str, dict[str, list[Prediction]]] = {
        task: {"right": [], "wrong": []} for task in lines
    }
    for number, prediction in enumerate(run.predictions()):
        if number in chosen:
            kind = "right" if _is_correct(prediction) else "wrong"
            prediction["passages"] = list(_passages(prediction, corpus))
            samples[prediction["task"]][kind].append(prediction)
    return samples


def _is_correct(prediction: Prediction) -> bool:
    scores = prediction["metrics"]
    return bool(next((scores[name] for name in _DECISIVE if name in scores), 0) == 1)


def _passages(prediction: Prediction, corpus: "Corpus | None") -> Iterator[dict[str, Any]]:
    """The first passages of a prediction, with their texts."""
    if corpus is None:
        return
    gold = {passage_id for ids in prediction["gold"] for passage_id in ids}
    for found in prediction["passages"][:_SHOWN_PASSAGES]:
        passage = corpus[corpus.rows([found["id"]])[0]]
        yield {
            **found,
            "title": passage.title or passage.id,
            "text": passage.text,
            "is_gold": passage.id in gold,
            "has_answer": contains_answer(
                passage.text[: found.get("visible")], prediction["answers"]
            ),
        }
