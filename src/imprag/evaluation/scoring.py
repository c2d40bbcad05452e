"""Scores answers and rankings of single examples, and summarizes scores as results."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from imprag.evaluation.calibration import summarize_confidence
from imprag.evaluation.metrics import (
    ANSWER_METRICS,
    answer_recall,
    ndcg,
    provenance_recall,
    r_precision,
    reciprocal_rank,
)
from imprag.evaluation.statistics import bootstrap_interval
from imprag.tasks import Example, Task
from imprag.tasks.matching import contains_answer

if TYPE_CHECKING:
    from imprag.corpus import Passage
    from imprag.retrieval.retriever import RetrievedPassage

#: Depths at which recall is measured.
RECALL_DEPTHS = (1, 5, 10, 20, 100)


def page_of(passage: "Passage") -> str:
    """The page of a passage: its Wikipedia page id if known, else its title, else its own id."""
    return _page_name(passage.meta) or passage.title.strip() or passage.id


def score_answer(task: Task, example: Example, answer: str) -> dict[str, float]:
    """Accuracy if answers are labels, otherwise exact match and F1; nothing if none is known."""
    if not example.answers:
        return {}
    names = ["accuracy"] if task.metric == "accuracy" else ["exact_match", "f1"]
    return {name: ANSWER_METRICS[name](answer, example.answers) for name in names}


def score_retrieval(
    task: Task,
    example: Example,
    found: "Sequence[RetrievedPassage]",
    gold_pages: Mapping[str, str],
    texts: Sequence[str] | None = None,
) -> dict[str, float]:
    """Retrieval metrics of one ranking, without those that the example has no gold data for.

    ``answer_recall@k`` measures whether a passage's text, without its title, contains an answer; it
    is left out if answers are labels. ``passage_recall@k``, ``mrr`` and ``ndcg@10`` measure the
    gold passages; if the task has joint evidence, recall needs all passages of an answer.
    ``r_precision`` measures the gold passages' pages, as in KILT.

    Args:
        task: the example's task.
        example: the example.
        found: distinct passages, best first.
        gold_pages: the page of each gold passage id.
        texts: the parts of the passages' texts that a model sees; by default the whole texts.
    """
    scores: dict[str, float] = {}
    if task.metric != "accuracy" and example.answers:
        texts = _texts(found, texts)
        for k in RECALL_DEPTHS:
            scores[f"answer_recall@{k}"] = answer_recall(texts, example.answers, k)
    if evidence := example.evidence_sets(joint=task.joint_evidence):
        ranking = [item.passage.id for item in found]
        for k in RECALL_DEPTHS:
            scores[f"passage_recall@{k}"] = provenance_recall(ranking, evidence, k)
        scores["mrr"] = reciprocal_rank(ranking, example.relevance)
        scores["ndcg@10"] = ndcg(ranking, example.relevance, 10)
        pages = [
            {_gold_page(reference, gold_pages) for reference in output.provenance}
            for output in example.output
        ]
        scores["r_precision"] = r_precision([page_of(item.passage) for item in found], pages)
    return scores


def score_all_retrievals(
    task: Task, example: Example, retrievals: "Sequence[Sequence[RetrievedPassage]]", k: int
) -> dict[str, float]:
    """The number of a prompt's retrievals, and the recall of all of them together.

    ``all_passage_recall@d`` and ``all_answer_recall@d`` look at the first d passages of every
    retrieval, where d is at most k.

    Args:
        task: the example's task.
        example: the example.
        retrievals: what the prompt and later tokens of its answer found, best first.
        k: number of passages that each retrieval brings.
    """
    scores = {"retrievals": float(len(retrievals))}
    evidence = example.evidence_sets(joint=task.joint_evidence)
    for depth in (d for d in RECALL_DEPTHS if d <= k):
        found = [item.passage for one in retrievals for item in one[:depth]]
        if evidence:
            ids = [passage.id for passage in found]
            recall = provenance_recall(ids, evidence, len(ids))
            scores[f"all_passage_recall@{depth}"] = recall
        if task.metric != "accuracy" and example.answers:
            texts = [passage.text for passage in found]
            recall = answer_recall(texts, example.answers, len(texts))
            scores[f"all_answer_recall@{depth}"] = recall
    return scores


def hit_ranks(
    task: Task,
    example: Example,
    found: "Sequence[RetrievedPassage]",
    texts: Sequence[str] | None = None,
) -> dict[str, int | None]:
    """Ranks, from 1, of the first answer and of complete evidence; ``None`` if not found.

    Args:
        task: the example's task.
        example: the example.
        found: distinct passages, best first.
        texts: the parts of the passages' texts that a model sees; by default the whole texts.

    Returns:
        ``answer``, unless answers are labels, and ``passage``, if the example has gold passages.
    """
    ranks: dict[str, int | None] = {}
    if task.metric != "accuracy" and example.answers:
        hits = (
            rank
            for rank, text in enumerate(_texts(found, texts), 1)
            if contains_answer(text, example.answers)
        )
        ranks["answer"] = next(hits, None)
    if evidence := example.evidence_sets(joint=task.joint_evidence):
        rank_of = {item.passage.id: rank for rank, item in enumerate(found, 1)}
        complete = (max(map(rank_of.__getitem__, ids)) for ids in evidence if ids <= rank_of.keys())
        ranks["passage"] = min(complete, default=None)
    return ranks


def summarize(predictions: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Means and 95 % bootstrap intervals of all metrics, by task.

    Args:
        predictions: objects with ``task`` and ``metrics``, such as lines of ``predictions.jsonl``.

    Returns:
        for each task, in order of appearance: ``n``, the number of its examples, and ``metrics``:
        for each ``mean``, ``low``, ``high`` and ``n``, the number of examples that define it. If
        answers have a ``confidence``, what it tells: see `summarize_confidence`.
    """
    judged: dict[str, list[tuple[float, bool]]] = defaultdict(list)
    counts: dict[str, int] = defaultdict(int)
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for prediction in predictions:
        counts[prediction["task"]] += 1
        for name, value in prediction["metrics"].items():
            values[prediction["task"]][name].append(value)
        if "confidence" in prediction and (right := is_right(prediction["metrics"])) is not None:
            judged[prediction["task"]].append((prediction["confidence"], right))
    results: dict[str, dict[str, Any]] = {
        task: {
            "n": count,
            "metrics": {name: summary(scores) for name, scores in values[task].items()},
        }
        for task, count in counts.items()
    }
    for task, pairs in judged.items():
        results[task]["confidence"] = summarize_confidence(*zip(*pairs, strict=True))
    return results


def is_right(metrics: Mapping[str, float]) -> bool | None:
    """Whether an answer is right, by exact match or accuracy; None if that is not known."""
    score = metrics.get("exact_match", metrics.get("accuracy"))
    return None if score is None else score == 1


def summary(scores: Sequence[float]) -> dict[str, float]:
    """``mean`` of scores, ``low`` and ``high`` of its 95 % bootstrap interval, and ``n``."""
    low, high = bootstrap_interval(scores)
    return {"mean": sum(scores) / len(scores), "low": low, "high": high, "n": len(scores)}


def _texts(found: "Sequence[RetrievedPassage]", texts: Sequence[str] | None) -> Sequence[str]:
    return [item.passage.text for item in found] if texts is None else texts


def _gold_page(reference: Mapping[str, Any], gold_pages: Mapping[str, str]) -> str:
    """The page of a provenance reference.

    A page that is not linked to the corpus counts as not found, even without a name: no passage has
    an empty page.
    """
    if reference.get("passage_id") is not None:
        return gold_pages[str(reference["passage_id"])]
    return _page_name(reference) or str(reference.get("title") or "").strip()


def _page_name(fields: Mapping[str, Any]) -> str:
    """The Wikipedia page id, or "" if it is unknown."""
    number = fields.get("wikipedia_id")
    return "" if number is None else str(number).strip()
