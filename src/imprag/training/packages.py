"""Optional packages of a training run: asked for before anything is written or computed."""

from pathlib import Path

from imprag.io.optional import missing, note_without, require
from imprag.retrieval.dense import require_teacher
from imprag.retrieval.lexical import require_bm25
from imprag.tasks.benchmark import is_benchmark
from imprag.training.recipe import Recipe
from imprag.training.sources import TaskSource

TENSORBOARD = "tensorboard"


def require_packages(recipe: Recipe) -> None:
    """Refuse to begin a run that could not be finished, and say it if it will have no curves.

    Raises:
        ImpRAGError: a package is missing that the recipe needs.
    """
    tasks = [source for source in recipe.data if isinstance(source, TaskSource)]
    retrieving = [source for source in tasks if source.retrieves]
    labelled = any(source.positives == "teacher" for source in retrieving)
    ranked = labelled or (retrieving and recipe.batch.hard_negatives)
    if ranked and recipe.teacher.retriever == "bm25":
        require_bm25()
    elif ranked:
        require_teacher(recipe.teacher.retriever)
    for source in tasks:
        if not Path(source.tasks).is_file() and not is_benchmark(source.tasks):
            require(f"reading {source.tasks}", "train", "datasets")
    if recipe.evaluation:
        require("a report of the evaluation", "train", "jinja2")
    note_without("curves for TensorBoard", "train", TENSORBOARD)


def curve_writers() -> list[str]:
    """What transformers' trainer reports to; ``metrics.jsonl`` is always written."""
    return [] if missing(TENSORBOARD) else [TENSORBOARD]
