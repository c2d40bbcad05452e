"""Passages in responses: citations in OpenAI's form, and the passages with their scores."""

from collections.abc import Sequence
from itertools import groupby
from urllib.parse import quote

from imprag.corpus import Passage
from imprag.model.attribution import AttributedToken, Attribution
from imprag.retrieval import RetrievedPassage
from imprag.retrieval.again import Retrieval, all_read
from imprag.serving.replies import Annotation, LaterRetrieval, ReadPassage, UrlCitation
from imprag.serving.requests import Ended


def passage_url(passage: Passage) -> str:
    """The passage's address: ``url`` of its metadata, or ``imprag:`` and its id."""
    url = passage.meta.get("url")
    return url if isinstance(url, str) and url else f"imprag:{quote(passage.id, safe='/')}"


def annotations(passages: Sequence[RetrievedPassage], ended: Ended) -> list[Annotation]:
    """Citations of the passages that an answer was made from.

    With an attribution, a citation stands for a stretch of the answer, and cites the passage that
    its tokens read most, of those that carried the answer. Otherwise every passage that was read is
    cited, each for the whole answer. An answer that was withheld cites nothing.

    Args:
        passages: that the prompt read.
        ended: the answer, which tells what later tokens retrieved.
    """
    if ended.abstained:
        return []
    read = all_read([Retrieval(0, list(passages)), *ended.retrievals])
    if ended.attribution is None:
        stretches = [(found, 0, len(ended.text)) for found in read]
    else:
        stretches = [(read[n], start, end) for n, start, end in _stretches(ended.attribution)]
    return [
        Annotation(
            url_citation=UrlCitation(
                url=passage_url(found.passage),
                title=found.passage.title,
                start_index=start,
                end_index=end,
            )
        )
        for found, start, end in stretches
    ]


def _stretches(attribution: Attribution) -> list[tuple[int, int, int]]:
    """The stretches of an answer that read the same passage most, as (passage, start, end)."""
    carried = attribution.carried_by
    if not carried:
        return []

    def most_read(token: AttributedToken) -> int:
        return max(carried, key=lambda n: token.shares[n])

    stretches = []
    for passage, tokens in groupby(attribution.tokens, most_read):
        first, *_, last = [*tokens] * 2
        stretches.append((passage, first.start, last.end))
    return stretches


def later_retrievals(prompt: int, ended: Ended) -> list[LaterRetrieval]:
    """What later tokens of an answer retrieved.

    Args:
        prompt: number of the prompt.
        ended: the answer.
    """
    return [
        LaterRetrieval(
            prompt=prompt,
            choice=ended.choice,
            tokens=one.tokens,
            written=one.written,
            passages=passages_read(one.passages, prompt),
        )
        for one in ended.retrievals
    ]


def passages_read(passages: Sequence[RetrievedPassage], prompt: int = 0) -> list[ReadPassage]:
    """Passages with their scores, best first.

    Args:
        passages: that were read.
        prompt: number of the prompt that read them.
    """
    return [
        ReadPassage(
            prompt=prompt,
            id=found.passage.id,
            title=found.passage.title,
            text=found.passage.text,
            url=passage_url(found.passage),
            score=found.score,
            kind=found.kind,
        )
        for found in passages
    ]
