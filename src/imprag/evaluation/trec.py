"""TREC run files of other systems, scored with the gold passages of a run."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from imprag.errors import ImpRAGError
from imprag.evaluation.exports import token
from imprag.evaluation.metrics import ndcg, provenance_recall, reciprocal_rank
from imprag.evaluation.run_folder import Prediction
from imprag.evaluation.scoring import RECALL_DEPTHS

_FORM = "expected: query Q0 passage rank score tag"


def read_trec_run(path: Path) -> dict[str, list[str]]:
    """The ids of each query's passages, in the order of ``trec_eval``: by score, then by id.

    Raises:
        ImpRAGError: a line has another form.
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
                scores[query][passage] = value
    except (OSError, UnicodeDecodeError) as error:
        raise ImpRAGError(f"cannot read {path}: {error}") from error
    if not scores:
        raise ImpRAGError(f"{path} is empty; {_FORM}")
    return {
        query: sorted(found, key=lambda one: (found[one], one), reverse=True)
        for query, found in scores.items()
    }


def score_trec_run(
    rankings: Mapping[str, Sequence[str]], predictions: Sequence[Prediction]
) -> dict[tuple[str, str], dict[str, float]]:
    """The retrieval metrics of rankings, by task and id.

    Args:
        rankings: passages by query. Queries are named ``TASK:ID``, as runs export them, or ``ID``.
        predictions: of a run, whose gold passages count. One without gold passages is left out; one
            that no query is named after has found nothing.

    Raises:
        ImpRAGError: no query belongs to the run.
    """
    scored: dict[tuple[str, str], dict[str, float]] = {}
    known = 0
    for prediction in predictions:
        evidence = [[token(one) for one in ids] for ids in prediction["gold"]]
        if not evidence:
            continue
        names = (token(f"{prediction['task']}:{prediction['id']}"), token(prediction["id"]))
        name = next((name for name in names if name in rankings), None)
        known += name is not None
        ranking = rankings[name] if name else []
        relevance = dict.fromkeys((one for ids in evidence for one in ids), 1)
        relevance |= {token(one): n for one, n in prediction.get("relevance", {}).items()}
        scored[prediction["task"], prediction["id"]] = {
            **{
                f"passage_recall@{k}": provenance_recall(ranking, evidence, k)
                for k in RECALL_DEPTHS
            },
            "mrr": reciprocal_rank(ranking, relevance),
            "ndcg@10": ndcg(ranking, relevance, 10),
        }
    if not known:
        raise ImpRAGError(
            "no query of the TREC file is one of the run: they are named TASK:ID or ID"
        )
    return scored
