"""Which passages are worth storing: those that prompts retrieve most often."""

from collections import Counter
from collections.abc import Callable, Sequence

from tqdm import tqdm

from imprag.errors import ImpRAGError
from imprag.retrieval.retriever import RetrievedPassage

_BATCH = 64

Retrieve = Callable[[Sequence[str]], Sequence[Sequence[RetrievedPassage]]]


def most_retrieved(retrieve: Retrieve, prompts: Sequence[str], count: int) -> list[str]:
    """The ids of the passages that are retrieved for most prompts, the most frequent first.

    Args:
        retrieve: returns the passages of each prompt of a batch.
        prompts: as users ask them.
        count: the greatest number of passages.

    Raises:
        ImpRAGError: there are no prompts, or no passages are asked for.
    """
    if count < 1 or not prompts:
        raise ImpRAGError("--top-passages needs at least one passage and one prompt")
    found: Counter[str] = Counter()
    for start in tqdm(range(0, len(prompts), _BATCH), desc="Retrieving", unit=" batches"):
        for row in retrieve(prompts[start : start + _BATCH]):
            found.update(one.passage.id for one in row)
    return [passage_id for passage_id, _ in found.most_common(count)]
