"""Passages in responses: citations in OpenAI's form, and the passages with their scores."""

from collections.abc import Sequence
from urllib.parse import quote

from imprag.corpus import Passage
from imprag.retrieval import RetrievedPassage
from imprag.serving.replies import Annotation, LaterRetrieval, ReadPassage, UrlCitation
from imprag.serving.requests import Ended


def passage_url(passage: Passage) -> str:
    """The passage's address: ``url`` of its metadata, or ``imprag:`` and its id."""
    url = passage.meta.get("url")
    return url if isinstance(url, str) and url else f"imprag:{quote(passage.id, safe='/')}"


def annotations(passages: Sequence[RetrievedPassage], answer: str) -> list[Annotation]:
    """A citation of every passage that was read; each stands for the whole answer."""
    return [
        Annotation(
            url_citation=UrlCitation(
                url=passage_url(found.passage),
                title=found.passage.title,
                start_index=0,
                end_index=len(answer),
            )
        )
        for found in passages
    ]


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
            passages=read_passages(one.passages, prompt),
        )
        for one in ended.retrievals
    ]


def read_passages(passages: Sequence[RetrievedPassage], prompt: int = 0) -> list[ReadPassage]:
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
