"""The teacher's scores of a batch."""

from dataclasses import replace

import pytest
import torch
from tiny_batches import RandomVectors, random_batch, random_teacher

from imprag.training import teacher_scores as module
from imprag.training.step import TrainingBatch

BATCH = replace(random_batch([2, 0, 0, 3], [[0], [], [], []], 5), columns=(4, 9, 2, 7, 0))
RIGHT = torch.zeros(4, 5, dtype=torch.bool)
RIGHT[[0, 0, 1, 3], [1, 2, 4, 0]] = True  # the third prompt retrieves nothing
BATCH = replace(BATCH, positive=RIGHT)


def expected(batch: TrainingBatch) -> torch.Tensor:
    """By a loop over all pairs, each embedded alone."""
    encoder = RandomVectors()
    rows = [
        [
            float(encoder.queries([text])[0] @ encoder.queries([f"passage {row}"])[0])
            for row in batch.columns
        ]
        for text in batch.texts
    ]
    return torch.tensor(rows)


def test_every_prompt_that_retrieves_is_scored_against_all_passages() -> None:
    teacher_scores, encoder = random_teacher()
    scores = teacher_scores(BATCH)
    assert scores.dtype == torch.float32
    retrieving = torch.tensor([0, 1, 3])
    torch.testing.assert_close(scores[retrieving], expected(BATCH)[retrieving])
    assert scores[2].isnan().all()
    assert BATCH.texts[2] not in encoder.asked


def test_passages_are_embedded_once() -> None:
    teacher_scores, encoder = random_teacher()
    teacher_scores(BATCH)
    first = list(encoder.asked)
    later = replace(BATCH, columns=(9, 5, 4, 7, 1))
    torch.testing.assert_close(teacher_scores(later)[:2], expected(later)[:2])
    asked = encoder.asked[len(first) :]
    assert [text for text in asked if text.startswith("passage")] == ["passage 5", "passage 1"]


def test_only_the_last_passages_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT", 3)
    teacher_scores, encoder = random_teacher()
    for _ in range(2):
        torch.testing.assert_close(teacher_scores(BATCH)[:2], expected(BATCH)[:2])
    passages = [text for text in encoder.asked if text.startswith("passage")]
    assert passages == [f"passage {row}" for row in (4, 9, 2, 7, 0, 4, 9)]


def test_a_passage_of_two_shards_counts_once() -> None:
    teacher_scores, _ = random_teacher()
    twice = replace(BATCH, columns=(4, 9, 4, 7, 9))
    scores = teacher_scores(twice)
    assert scores.isnan()[0].tolist() == [False, False, True, False, True]
    torch.testing.assert_close(scores[:2, :2], expected(twice)[:2, :2])


def test_a_batch_without_retrieval() -> None:
    teacher_scores, encoder = random_teacher()
    batch = random_batch([3, 1], [[], []], 0)
    assert teacher_scores(batch).shape == (2, 0)
    assert encoder.asked == []
