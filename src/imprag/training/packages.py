"""Optional packages of a training run; they are checked before anything is computed."""

from pathlib import Path

from imprag.io.optional import missing, note_without, require
from imprag.retrieval.dense import require_teacher
from imprag.tasks.benchmark import is_benchmark
from imprag.training.recipe import Recipe
from imprag.training.sources import TaskSource

TENSORBOARD = "tensorboard"


def require_packages(recipe: Recipe) -> None:
    """Check the packages that a recipe needs; print a note if there will be no TensorBoard curves.

    Raises:
        ImpRAGError: a required package is missing.
    """
    tasks = [source for source in recipe.data if isinstance(source, TaskSource)]
    retrieving = [source for source in tasks if source.retrieves]
    labelled = any(source.positives == "teacher" for source in retrieving)
    ranked = labelled or (retrieving and recipe.batch.hard_negatives)
    if ranked and recipe.teacher.retriever != "bm25":
        require_teacher(recipe.teacher.retriever)
    for source in tasks:
        if not Path(source.tasks).is_file() and not is_benchmark(source.tasks):
            require(f"reading {source.tasks}", "train", "datasets")
    if recipe.evaluation:
        require("a report of the evaluation", "train", "jinja2")
    note_without("curves for TensorBoard", "train", TENSORBOARD)


def curve_writers() -> list[str]:
    """``report_to`` of transformers' trainer; ``metrics.jsonl`` is always written."""
    return [] if missing(TENSORBOARD) else [TENSORBOARD]
