"""Evaluation of a model while it trains."""

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
#: Stands before the metrics of answers that are read from a gold passage among three.
GOLD_AMONG = f"gold_among_{_AMONG}/"


class DevelopmentSet:
    """Examples and passages that a model is measured by while it trains.

    A measurement embeds the passages with the model as it is then, lets it retrieve, read and
    answer, and writes a run folder ``step-N`` as ``imprag eval`` does. A second one,
    ``step-N-gold``, tells reading from retrieval: the model is given the gold passage and two
    others.

    Args:
        settings: what to measure.
        corpus: of the recipe; the passages, unless the settings name others.
        folder: for the run folders, and for the corpus of a split.
        metric: the one that the best checkpoint is chosen by.

    Attributes:
        tasks: with the drawn examples.
        corpus: the passages.
        metrics: names of all means over the tasks.

    Raises:
        ImpRAGError: there are no such tasks, passages or metric, a gold passage is not among the
            passages, or a package that reports need is missing.
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
                f"trainer.metric_for_best_model is '{metric}', but what these tasks measure is "
                f"{', '.join(self.metrics)}"
            )

    def __call__(self, model: ImpRAGModel, tokenizer: Any, step: int) -> dict[str, float]:
        """Measure a model, or take the results of a measurement that is there already.

        Args:
            model: the model; in evaluation mode meanwhile.
            tokenizer: its tokenizer.
            step: of the training, for the run folders' names.

        Returns:
            for every metric its mean over the tasks that have it and, where there are several
            tasks, as ``TASK/METRIC`` its mean in each; then the same of the answers with a gold
            passage among three, all names beginning with ``gold_among_3/``.
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
            return evaluate(ImpRAG(model, tokenizer, index), self.tasks, out)

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
            "evaluation.corpus is split, but there is no evaluation.data: name the benchmark whose "
            "split it is, or another corpus"
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
        source=f"{corpus.manifest['source'] or corpus.path}, what is about the entities of "
        f"{benchmark['name']} {benchmark['version']}, seed {benchmark['seed']}, {settings.split}",
        credit=corpus.manifest["credit"],
    )


def _names_gold(item: TaskExamples) -> bool:
    """Whether any example can be answered by its gold passages."""
    joint = item.task.joint_evidence
    return item.task.retrieval and any(one.evidence_sets(joint=joint) for one in item.examples)


def _metric_names(
    tasks: Sequence[TaskExamples], with_gold: Sequence[TaskExamples], corpus: Corpus
) -> list[str]:
    """What the means over the tasks will be called, found out by scoring empty answers."""
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
    """The results of a run folder, asked for where they are not there yet."""
    if (out / RESULTS).is_file():
        return RunFolder.open(out).results()
    # A resumed training may come to weights that differ in the last bit from those that began
    # this run, so it cannot go on.
    shutil.rmtree(out, ignore_errors=True)
    return ask(out)


def _means(results: Mapping[str, Any]) -> dict[str, float]:
    """Of every metric the mean over tasks, and that of each task where there are several."""
    tasks = results["tasks"]
    of_metric: dict[str, list[float]] = defaultdict(list)
    of_task: dict[str, float] = {}
    for task, result in tasks.items():
        for name, value in result["metrics"].items():
            of_metric[name].append(value["mean"])
            of_task[f"{task}/{name}"] = value["mean"]
    means = {name: fmean(values) for name, values in of_metric.items()}
    return means | of_task if len(tasks) > 1 else means
