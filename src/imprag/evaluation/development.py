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
from imprag.evaluation.passage_sources import (
    PassageSource,
    Question,
    gold_among,
    text_retrieval,
)
from imprag.evaluation.report import require_packages
from imprag.evaluation.run_folder import RESULTS, RunFolder
from imprag.evaluation.runner import check_distinct, evaluate, gold_pages
from imprag.evaluation.scoring import RECALL_DEPTHS, score_answer, score_retrieval
from imprag.model import ImpRAGModel
from imprag.pipeline import ImpRAG
from imprag.retrieval.retriever import IMPLICIT, RetrievedPassage, retrieved_passages
from imprag.tasks import TaskExamples, load_benchmark, read_tasks, split_of_passages
from imprag.training.distributed import from_main_process, is_main_process
from imprag.training.ranking import rank_corpus
from imprag.training.recipe import EvaluationSettings
from imprag.training.teacher import TextRetriever

_AMONG = 3
#: Prefix of metrics for answers that are read from a gold passage among three.
GOLD_AMONG = f"gold_among_{_AMONG}/"


class DevelopmentSet:
    """The examples and passages that evaluate a model during training.

    An evaluation ranks the passages with the current weights, reads and answers, and writes a run
    folder ``step-N`` as ``imprag eval`` does. A second one, ``step-N-gold``, measures reading
    without retrieval: the model reads the gold passage among three.

    All processes of a training evaluate together: each embeds its share of the passages and
    searches it, and the main process answers and writes.

    Args:
        settings: the recipe's section `evaluation`.
        corpus: the recipe's corpus, unless the settings name another one.
        folder: folder of the run folders and of the corpus of a split.
        metric: the metric that selects the best checkpoint.
        retriever: for a baseline, makes its retriever over a corpus; what it finds is read in the
            context. By default the model retrieves.

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
        retriever: Callable[[Corpus], TextRetriever] | None = None,
    ) -> None:
        require_packages()
        tasks = read_tasks(settings.tasks, data=settings.data, split=settings.split)
        check_distinct(tasks)
        self.tasks = [item.draw(settings.limit, seed=0) for item in tasks]
        self.corpus = _development_corpus(settings, corpus, folder)
        self._folder = folder
        self._retriever = retriever
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
            among three, with the prefix ``gold_among_3/``. Empty in all but the main process.
        """
        training = model.training
        model.eval()
        try:
            out = self._folder / f"step-{step}"
            finished = from_main_process((out / RESULTS).is_file())
            source = None
            if not finished and self._retriever is None:
                source = self._retrieval(model, tokenizer)
            if not is_main_process():
                return {}
            if not finished and self._retriever is not None:
                source = text_retrieval("dense", self._retriever(self.corpus))
            ask = partial(
                evaluate, ImpRAG(model, tokenizer), in_context=self._retriever is not None
            )
            means = _means(_finish(out, partial(ask, self.tasks, source=source)))
            if self._with_gold:
                source = gold_among(self.corpus, _AMONG)
                by_gold = partial(ask, self._with_gold, source=source, k=_AMONG)
                gold = _means(_finish(self._folder / f"step-{step}-gold", by_gold))
                means |= {GOLD_AMONG + name: mean for name, mean in gold.items()}
        finally:
            model.train(training)
        return means

    def _retrieval(self, model: ImpRAGModel, tokenizer: Any) -> PassageSource:
        """The model's own retrieval, for the prompts of all examples at once."""
        prompts = dict.fromkeys(
            item.task.prompt(example)
            for item in self.tasks
            if item.task.retrieval
            for example in item.examples
        )
        depth = min(max(model.config.k, *RECALL_DEPTHS), len(self.corpus))
        ranking = rank_corpus(
            model, tokenizer, self.corpus, list(prompts), depth, limit=model.positions_limit
        )
        rows, scores = (part.cpu().numpy() for part in ranking)
        number_of = {prompt: number for number, prompt in enumerate(prompts)}

        def find(questions: Sequence[Question], k: int) -> list[list[RetrievedPassage]]:
            asked = [number_of[question.prompt] for question in questions]
            return retrieved_passages(self.corpus, rows[asked, :k], scores[asked, :k], IMPLICIT)

        return PassageSource(IMPLICIT, find, self.corpus)


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
