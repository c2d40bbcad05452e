"""Passages of a page of the KILT knowledge source."""

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from imprag.corpus.passage import Passage
from imprag.corpus.text import split_spans


def kilt_passages(
    page: str, title: str, paragraphs: Sequence[str], max_words: int
) -> Iterator[Passage]:
    """Yield the passages of a page.

    Headings (``Section::::``) are dropped. The metadata holds the page and the passage's
    paragraph numbers, which KILT's provenance refers to.

    Args:
        page: id of the page.
        title: its title; a first paragraph that repeats it is dropped.
        paragraphs: its paragraphs, without white space around them.
        max_words: the longest passage, in words.
    """
    numbers, texts = [], []
    for number, paragraph in enumerate(paragraphs):
        text = paragraph.removeprefix("BULLET::::")
        is_title = number == 0 and text == title
        if text and not is_title and not text.startswith("Section::::"):
            numbers.append(number)
            texts.append(text)
    page_text = "\n\n".join(texts)
    starts = list(itertools.accumulate((len(text) + 2 for text in texts), initial=0))
    spans = split_spans(page_text, max_words, whole_words=True)
    for part, (start, end) in enumerate(spans, 1):
        yield Passage(
            id=f"{page}/{part}",
            title=title,
            text=page_text[start:end].replace("\n\n", "\n"),
            meta={
                "wikipedia_id": page,
                "start_paragraph_id": numbers[bisect_right(starts, start) - 1],
                "end_paragraph_id": numbers[bisect_right(starts, end - 1) - 1],
            },
        )
