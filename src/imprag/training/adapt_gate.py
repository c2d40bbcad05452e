"""Refits the gate of hybrid retrieval to the corpus that a model is adapted to.

Only people's questions teach it. Prompts made from passages share more of their words with them
than questions do, so a gate fitted on those would trust the words too much.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from imprag.pipeline import ImpRAG, make_retriever
from imprag.retrieval.gate import Gate
from imprag.retrieval.hybrid import Candidates, HybridRetriever
from imprag.training.data import TrainingSource
from imprag.training.gate import GateExample, fit_gate, hits, is_found

FEWEST_QUESTIONS = 50
"""Usable questions below which the gate stays as it is."""

Recall = tuple[float, float]


@dataclass(frozen=True)
class GateFit:
    """What refitting a gate found.

    Attributes:
        questions: number of held-back questions.
        usable: those of which both retrievers' candidates include a gold passage.
        before: recall@1 and recall@10 with the model's gate; all sources weigh alike.
        after: the same with a gate that was fitted on the other half of the questions.
        gate: fitted on all of them; None if it finds less than the model's gate, or if there are
            too few questions to tell.
    """

    questions: int
    usable: int
    before: Recall
    after: Recall
    gate: Gate | None


def refit_gate(
    rag: ImpRAG, sources: Sequence[TrainingSource], left_out: frozenset[int] = frozenset()
) -> GateFit | None:
    """Fit the gate on people's questions that nothing else was trained on.

    Args:
        rag: the adapted model with its index.
        sources: held-back questions with their gold passages as positives.
        left_out: rows of the corpus that are no candidates.

    Returns:
        what was found, or None if the model has no gate or the index no lexical part.
    """
    if rag.config.gate is None or not rag.index.has_lexical:
        return None
    retriever = make_retriever(rag, "hybrid", None)
    assert isinstance(retriever, HybridRetriever)
    tasks: dict[str, list[GateExample]] = {}
    for source in sources:
        found = retriever.candidates([example.prompt for example in source.examples])
        tasks[source.name] = [
            GateExample(_without(candidates, left_out), frozenset(example.positives))
            for candidates, example in zip(found, source.examples, strict=True)
        ]
    before = _recall(tasks, retriever.gate)
    questions = [example for own in tasks.values() for example in own]
    counts = len(questions), sum(map(is_found, questions))
    if counts[1] < FEWEST_QUESTIONS:
        return GateFit(*counts, before, before, None)
    halves = _halves(tasks)
    fitted = [fit_gate({"corpus": half}) for half in halves]
    crossed = np.mean([_recall(halves[n], fitted[1 - n]) for n in (0, 1)], axis=0)
    after = (float(crossed[0]), float(crossed[1]))
    gate = fit_gate({"corpus": tasks}) if sum(after) > sum(before) else None
    return GateFit(*counts, before, after, gate)


Tasks = Mapping[str, Sequence[GateExample]]


def _without(candidates: Candidates, rows: frozenset[int]) -> Candidates:
    keep = ~np.isin(candidates.rows, list(rows))
    return replace(candidates, rows=candidates.rows[keep], scores=candidates.scores[:, keep])


def _recall(tasks: Tasks, gate: Gate) -> Recall:
    """Recall@1 and recall@10; all tasks weigh alike."""
    found = [np.mean([hits(example, gate) for example in own], axis=0) for own in tasks.values()]
    first, among = np.mean(found, axis=0).tolist()
    return first, among


def _halves(tasks: Tasks) -> tuple[Tasks, Tasks]:
    shuffled = {name: random.Random(0).sample(own, len(own)) for name, own in tasks.items()}
    one, other = ({name: own[n::2] for name, own in shuffled.items()} for n in (0, 1))
    return one, other
