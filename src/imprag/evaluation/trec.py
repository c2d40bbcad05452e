"""TREC run files of other systems, scored with the gold passages of a run."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from imprag.errors import ImpRAGError
from imprag.evaluation.exports import token
from imprag.evaluation.metrics import ndcg, provenance_recall, reciprocal_rank
from imprag.evaluation.run_folder import Prediction
from imprag.evaluation.scoring import RECALL_DEPTHS

_FORM = "expected: query Q0 passage rank score tag"


def read_trec_run(path: Path) -> dict[str, list[str]]:
    """The ids of each query's passages, in the order of ``trec_eval``: by score, then by id.

    Raises:
        ImpRAGError: a line has another form, or a query ranks a passage twice.
    """
    scores: dict[str, dict[str, float]] = defaultdict(dict)
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    query, _, passage, _, score, _ = line.split()
                    value = float(score)
                except ValueError as error:
                    raise ImpRAGError(f"{path}, line {number}: {_FORM}") from error
                if not math.isfinite(value):
                    raise ImpRAGError(f"{path}, line {number}: the score is not finite")
                if passage in scores[query]:
                    raise ImpRAGError(
                        f"{path}, line {number}: query {query} ranks passage {passage} twice"
                    )
                scores[query][passage] = value
    except (OSError, UnicodeDecodeError) as error:
        raise ImpRAGError(f"cannot read {path}: {error}") from error
    if not scores:
        raise ImpRAGError(f"{path} is empty; {_FORM}")
    return {
        query: sorted(found, key=lambda one: (found[one], one), reverse=True)
        for query, found in scores.items()
    }


class ScoredRun(NamedTuple):
    """The retrieval metrics of a file's rankings.

    Attributes:
        metrics: by task and id; only of tasks that the file has a query of.
        lacking: the number of queries of each of these tasks that the file lacks.
        unknown: the number of the file's queries that are not of the run.
    """

    metrics: dict[tuple[str, str], dict[str, float]]
    lacking: dict[str, int]
    unknown: int


def score_trec_run(
    rankings: Mapping[str, Sequence[str]], predictions: Sequence[Prediction], depth: int
) -> ScoredRun:
    """Score rankings with the gold passages of a run.

    Args:
        rankings: passages by query. Queries are named ``TASK:ID``, as runs export them, or ``ID``.
        predictions: of the run. One without gold passages is left out; one that no query is named
            after has found nothing, unless the file has no query of its task.
        depth: of the run's own rankings; what ranks lower does not count.

    Raises:
        ImpRAGError: no query belongs to the run, or one belongs to several tasks.
    """
    with_gold = [one for one in predictions if one["gold"]]
    names = _query_names(rankings, with_gold)
    if not names:
        raise ImpRAGError(
            "no query of the TREC file is one of the run: they are named TASK:ID or ID"
        )
    tasks = {task for task, _ in names}
    kept = [one for one in with_gold if one["task"] in tasks]
    metrics, lacking = {}, Counter[str]()
    for prediction in kept:
        key = prediction["task"], prediction["id"]
        lacking[prediction["task"]] += key not in names
        ranking = rankings[names[key]][:depth] if key in names else []
        metrics[key] = _score(ranking, prediction)
    return ScoredRun(metrics, dict(lacking), len(rankings.keys() - names.values()))


def _query_names(
    rankings: Mapping[str, Sequence[str]], predictions: Sequence[Prediction]
) -> dict[tuple[str, str], str]:
    """The name of each prediction's query in a file, by task and id, for those that it has."""
    keys = [(one["task"], one["id"]) for one in predictions]
    whole = {key: token(":".join(key)) for key in keys}
    found = {key: name for key, name in whole.items() if name in rankings}
    taken = set(found.values())
    bare: dict[str, tuple[str, str]] = {}
    for key in keys:
        name = token(key[1])
        if key in found or name in taken or name not in rankings:
            continue
        if name in bare:
            raise ImpRAGError(
                f"query {name} of the TREC file may be of the task {bare[name][0]} or {key[0]}: "
                "name queries TASK:ID"
            )
        bare[name] = key
    return found | {key: name for name, key in bare.items()}


def _score(ranking: Sequence[str], prediction: Prediction) -> dict[str, float]:
    evidence = [[token(one) for one in ids] for ids in prediction["gold"]]
    relevance = dict.fromkeys((one for ids in evidence for one in ids), 1)
    relevance |= {token(one): n for one, n in prediction.get("relevance", {}).items()}
    return {
        **{f"passage_recall@{k}": provenance_recall(ranking, evidence, k) for k in RECALL_DEPTHS},
        "mrr": reciprocal_rank(ranking, relevance),
        "ndcg@10": ndcg(ranking, relevance, 10),
    }
