"""From what a system found and answered to scores of one example, and from scores to results."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

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

#: Depths at which retrieval recall is taken.
RECALL_DEPTHS = (1, 5, 10, 20, 100)


def page_of(passage: "Passage") -> str:
    """The page of a passage: Wikipedia's number of it if known, else its title, else its own id."""
    return _page_name(passage.meta) or passage.title.strip() or passage.id


def score_answer(task: Task, example: Example, answer: str) -> dict[str, float]:
    """Accuracy where answers are labels, else exact match and F1."""
    names = ["accuracy"] if task.metric == "accuracy" else ["exact_match", "f1"]
    return {name: ANSWER_METRICS[name](answer, example.answers) for name in names}


def score_retrieval(
    task: Task,
    example: Example,
    found: "Sequence[RetrievedPassage]",
    gold_pages: Mapping[str, str],
    texts: Sequence[str] | None = None,
) -> dict[str, float]:
    """Retrieval metrics of one ranking; what the example has no gold for is left out.

    ``answer_recall@k`` asks whether a passage's text, without its title, contains an answer; not
    where answers are labels. ``passage_recall@k``, ``mrr`` and ``ndcg@10`` ask for the gold
    passages; recall wants all of an answer's where the task asks for joint evidence.
    ``r_precision`` asks for the gold passages' pages, as in KILT.

    Args:
        found: distinct passages, best first.
        gold_pages: the page of every gold passage id.
        texts: what a model sees of the passages' texts, if that is not all.
    """
    scores: dict[str, float] = {}
    if task.metric != "accuracy":
        texts = _texts(found, texts)
        for k in RECALL_DEPTHS:
            scores[f"answer_recall@{k}"] = answer_recall(texts, example.answers, k)
    if evidence := example.evidence_sets(joint=task.joint_evidence):
        ranking = [item.passage.id for item in found]
        for k in RECALL_DEPTHS:
            scores[f"passage_recall@{k}"] = provenance_recall(ranking, evidence, k)
        relevant = frozenset[str]().union(*evidence)
        scores["mrr"] = reciprocal_rank(ranking, relevant)
        scores["ndcg@10"] = ndcg(ranking, relevant, 10)
        pages = [
            {_gold_page(reference, gold_pages) for reference in output.provenance}
            for output in example.output
        ]
        scores["r_precision"] = r_precision([page_of(item.passage) for item in found], pages)
    return scores


def hit_ranks(
    task: Task,
    example: Example,
    found: "Sequence[RetrievedPassage]",
    texts: Sequence[str] | None = None,
) -> dict[str, int | None]:
    """At which rank, from 1, an answer stands and the evidence is complete; ``None`` for nowhere.

    Args:
        found: distinct passages, best first.
        texts: what a model sees of the passages' texts, if that is not all.

    Returns:
        ``answer``, unless answers are labels, and ``passage``, if the example has gold passages.
    """
    ranks: dict[str, int | None] = {}
    if task.metric != "accuracy":
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
        for every task, in the order met: ``n``, the number of its examples, and ``metrics``: for
        each ``mean``, ``low``, ``high`` and ``n``, the examples that it is defined for.
    """
    counts: dict[str, int] = defaultdict(int)
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for prediction in predictions:
        counts[prediction["task"]] += 1
        for name, value in prediction["metrics"].items():
            values[prediction["task"]][name].append(value)
    return {
        task: {
            "n": count,
            "metrics": {name: summary(scores) for name, scores in values[task].items()},
        }
        for task, count in counts.items()
    }


def summary(scores: Sequence[float]) -> dict[str, float]:
    """``mean`` of some scores, ``low`` and ``high`` of its 95 % bootstrap interval, and ``n``."""
    low, high = bootstrap_interval(scores)
    return {"mean": sum(scores) / len(scores), "low": low, "high": high, "n": len(scores)}


def _texts(found: "Sequence[RetrievedPassage]", texts: Sequence[str] | None) -> Sequence[str]:
    return [item.passage.text for item in found] if texts is None else texts


def _gold_page(reference: Mapping[str, Any], gold_pages: Mapping[str, str]) -> str:
    """A page that could not be linked to the corpus counts as one that cannot be found.

    That is so without any name, too: no passage has an empty one.
    """
    if reference.get("passage_id") is not None:
        return gold_pages[str(reference["passage_id"])]
    return _page_name(reference) or str(reference.get("title") or "").strip()


def _page_name(fields: Mapping[str, Any]) -> str:
    """Wikipedia's number of a page, empty where it is not known."""
    number = fields.get("wikipedia_id")
    return "" if number is None else str(number).strip()
