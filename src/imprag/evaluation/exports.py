"""Exports a run to TREC run and qrels files and to KILT predictions."""

import json
import math
import re
from collections.abc import Callable
from contextlib import ExitStack
from typing import TextIO
from urllib.parse import quote

from imprag.evaluation.run_folder import Prediction, RunFolder
from imprag.io.files import atomic_path

TREC_RUN = "run.trec"
TREC_QRELS = "qrels.trec"
KILT = "kilt"


def write_trec(run: RunFolder, tag: str) -> None:
    """Write ``run.trec`` and ``qrels.trec``, which ``trec_eval`` and ``ir_measures`` read.

    Queries are named ``TASK:ID``; white space in names is percent-encoded. Gold passages have
    relevance 1, unless the examples grade them.

    Args:
        run: a finished run.
        tag: name of the system in the run file.
    """
    with (
        atomic_path(run.path / TREC_RUN) as run_path,
        atomic_path(run.path / TREC_QRELS) as qrels_path,
        open(run_path, "w", encoding="utf-8") as ranking,
        open(qrels_path, "w", encoding="utf-8") as qrels,
    ):
        for prediction in run.predictions():
            query = token(f"{prediction['task']}:{prediction['id']}")
            gold = dict.fromkeys((id for ids in prediction["gold"] for id in ids), 1)
            # Runs that an earlier version began have no grades.
            for passage_id, grade in {**gold, **prediction.get("relevance", {})}.items():
                qrels.write(f"{query} 0 {token(passage_id)} {grade}\n")
            below = math.inf
            for rank, passage in enumerate(prediction["passages"], 1):
                # TREC tools sort by score in single precision, so scores must not tie.
                score = min(passage["score"], below)
                below = score - 1e-6 * max(1, abs(score))
                name = token(passage["id"])
                ranking.write(f"{query} Q0 {name} {rank} {score:.9g} {token(tag)}\n")


def write_kilt(run: RunFolder, page: Callable[[str], str]) -> None:
    """Write predictions in KILT's format, one file per task, for its scorer.

    Args:
        run: a finished run.
        page: maps a passage id to its page, since KILT ranks pages.
    """
    streams: dict[str, TextIO] = {}
    with ExitStack() as files:
        for prediction in run.predictions():
            task = prediction["task"]
            if task not in streams:
                path = files.enter_context(atomic_path(run.path / KILT / f"{task}.jsonl"))
                streams[task] = files.enter_context(open(path, "w", encoding="utf-8"))
            line = json.dumps(_kilt(prediction, page), ensure_ascii=False)
            streams[task].write(line + "\n")


def _kilt(prediction: Prediction, page: Callable[[str], str]) -> dict[str, object]:
    pages = dict.fromkeys(page(passage["id"]) for passage in prediction["passages"])
    output = {
        "answer": prediction.get("answer", ""),
        "provenance": [{"wikipedia_id": name} for name in pages],
    }
    return {"id": prediction["id"], "output": [output]}


def token(text: str) -> str:
    """A name without white space, which is percent-encoded."""
    return re.sub(r"\s+", lambda match: quote(match[0]), text)
