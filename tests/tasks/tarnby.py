"""Passages from which the tests make tasks."""

from imprag.corpus.passage import Passage

PASSAGES = [
    Passage(
        f"p{number}",
        "Tarnby",
        f"Tarnby has {number} mills, and a harbour. Dr. Ada J. Lindqvist built the first one! "
        'It burned in 1810; the town rebuilt it. "We need flour," said the mayor.',
    )
    for number in range(40)
]
