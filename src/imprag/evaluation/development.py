"""Evaluation of a model during training."""

import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from imprag.corpus import Corpus, load_corpus
from imprag.errors import ImpRAGError
from imprag.evaluation.passage_sources import gold_among
from imprag.evaluation.report import require_packages
from imprag.evaluation.run_folder import RESULTS, RunFolder
from imprag.evaluation.runner import check_distinct, evaluate, gold_pages
from imprag.evaluation.scoring import score_answer, score_retrieval
from imprag.index.folder import IndexFolder
from imprag.model import ImpRAGModel
from imprag.model.passage_encoder import PassageEncoder
from imprag.pipeline import ImpRAG
from imprag.tasks import TaskExamples, load_benchmark, read_tasks, split_of_passages
from imprag.training.recipe import EvaluationSettings

_AMONG = 3
#: Prefix of metrics for answers that are read from a gold passage among three.
GOLD_AMONG = f"gold_among_{_AMONG}/"


class DevelopmentSet:
    """The examples and passages that evaluate a model during training.

    An evaluation embeds the passages with the current weights, retrieves, reads and answers, and
    writes a run folder ``step-N`` as ``imprag eval`` does. A second one, ``step-N-gold``, measures
    reading without retrieval: the model reads the gold passage among three.

    Args:
        settings: the recipe's section `evaluation`.
        corpus: the recipe's corpus, unless the settings name another one.
        folder: folder of the run folders and of the corpus of a split.
        metric: the metric that selects the best checkpoint.

    Attributes:
        tasks: the tasks with their sampled examples.
        corpus: the passages.
        metrics: names of all means over the tasks.

    Raises:
        ImpRAGError: the tasks, the corpus or the metric do not exist, a gold passage is not in the
            corpus, or a package for reports is missing.
    """

    def __init__(
        self,
        settings: EvaluationSettings,
        corpus: Corpus,
        folder: Path,
        metric: str = "exact_match",
    ) -> None:
        require_packages()
        tasks = read_tasks(settings.tasks, data=settings.data, split=settings.split)
        check_distinct(tasks)
        self.tasks = [item.draw(settings.limit, seed=0) for item in tasks]
        self.corpus = _development_corpus(settings, corpus, folder)
        self._folder = folder
        self._with_gold = [item for item in self.tasks if _names_gold(item)]
        self.metrics = _metric_names(self.tasks, self._with_gold, self.corpus)
        if metric not in self.metrics:
            raise ImpRAGError(
                f"trainer.metric_for_best_model is '{metric}', but the metrics of these tasks are "
                f"{', '.join(self.metrics)}"
            )

    def __call__(self, model: ImpRAGModel, tokenizer: Any, step: int) -> dict[str, float]:
        """Evaluate a model, or read the results if this step's run folders are finished.

        Args:
            model: the model; it is in evaluation mode during the call.
            tokenizer: the model's tokenizer.
            step: the training step, for the names of the run folders.

        Returns:
            the mean of each metric over the tasks that have it and, with several tasks, its mean in
            each as ``TASK/METRIC``; then the same for answers that are read from a gold passage
            among three, with the prefix ``gold_among_3/``.
        """
        training = model.training
        model.eval()
        try:
            by_retrieval = partial(self._answer_by_retrieval, model, tokenizer)
            means = _means(_finish(self._folder / f"step-{step}", by_retrieval))
            if self._with_gold:
                by_gold = partial(self._answer_by_gold, model, tokenizer)
                gold = _means(_finish(self._folder / f"step-{step}-gold", by_gold))
                means |= {GOLD_AMONG + name: mean for name, mean in gold.items()}
        finally:
            model.train(training)
        return means

    def _answer_by_retrieval(self, model: ImpRAGModel, tokenizer: Any, out: Path) -> dict[str, Any]:
        encoder = PassageEncoder(model, tokenizer)
        with IndexFolder.temporary(self.corpus, encoder, self._folder / ".index") as index:
            return evaluate(ImpRAG(model, tokenizer, index, retrieval="implicit"), self.tasks, out)

    def _answer_by_gold(self, model: ImpRAGModel, tokenizer: Any, out: Path) -> dict[str, Any]:
        source = gold_among(self.corpus, _AMONG)
        return evaluate(ImpRAG(model, tokenizer), self._with_gold, out, source=source, k=_AMONG)


def _development_corpus(settings: EvaluationSettings, corpus: Corpus, folder: Path) -> Corpus:
    if settings.corpus is None:
        return corpus
    if settings.corpus != "split":
        return load_corpus(settings.corpus)
    if settings.data is None:
        raise ImpRAGError(
            "evaluation.corpus is split, but there is no evaluation.data: give the benchmark that "
            "has the split, or another corpus"
        )
    benchmark = load_benchmark(settings.data)
    split_of = split_of_passages(benchmark)
    key = json.dumps([corpus.fingerprint, benchmark["splits"], settings.split], sort_keys=True)
    path = folder / f"corpus-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if path.exists():
        return Corpus.open(path)
    return Corpus.build(
        (passage for passage in corpus if split_of(passage) == settings.split),
        path,
        source=f"{corpus.manifest['source'] or corpus.path}, passages about the entities of "
        f"{benchmark['name']} {benchmark['version']}, seed {benchmark['seed']}, {settings.split}",
        credit=corpus.manifest["credit"],
    )


def _names_gold(item: TaskExamples) -> bool:
    """Whether a task retrieves and any of its examples names gold passages."""
    joint = item.task.joint_evidence
    return item.task.retrieval and any(one.evidence_sets(joint=joint) for one in item.examples)


def _metric_names(
    tasks: Sequence[TaskExamples], with_gold: Sequence[TaskExamples], corpus: Corpus
) -> list[str]:
    """Names of the means over the tasks, found by scoring empty answers."""
    pages = gold_pages(tasks, corpus)
    names: dict[str, None] = {}
    for item in tasks:
        for example in item.examples:
            names |= dict.fromkeys(score_answer(item.task, example, ""))
            if item.task.retrieval:
                names |= dict.fromkeys(score_retrieval(item.task, example, [], pages))
    for item in with_gold:
        scores = score_answer(item.task, item.examples[0], "")
        names |= dict.fromkeys(GOLD_AMONG + name for name in scores)
    return list(names)


def _finish(out: Path, ask: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """The results of a run folder; it is evaluated first if it is not finished."""
    if (out / RESULTS).is_file():
        return RunFolder.open(out).results()
    # After a resumed training, weights may differ in the last bit from those that this run began
    # with, so it cannot be resumed.
    shutil.rmtree(out, ignore_errors=True)
    return ask(out)


def _means(results: Mapping[str, Any]) -> dict[str, float]:
    """The mean of each metric over the tasks and, with several tasks, in each of them."""
    tasks = results["tasks"]
    of_metric: dict[str, list[float]] = defaultdict(list)
    of_task: dict[str, float] = {}
    for task, result in tasks.items():
        for name, value in result["metrics"].items():
            of_metric[name].append(value["mean"])
            of_task[f"{task}/{name}"] = value["mean"]
    means = {name: fmean(values) for name, values in of_metric.items()}
    return means | of_task if len(tasks) > 1 else means
