"""Imports KILT files: maps references to Wikipedia paragraphs to the passages of a corpus."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from imprag.corpus.passage import Passage
from imprag.corpus.store import Corpus
from imprag.tasks.example import Answer, Example, write_examples
from imprag.tasks.matching import contains_answer
from imprag.tasks.task import Task

#: The ways to link a reference, the most reliable first.
LINKS = ("paragraph", "page", "title+answer", "title", "none")


def import_kilt(
    source: str | Path, corpus: Corpus, out: str | Path, task: Task, split: str = "validation"
) -> dict[str, int]:
    """Read a KILT file, link its provenance to passages of a corpus, and write the examples.

    A reference is linked in the most reliable way that the corpus allows:

    - ``paragraph``: to the passages of its page and paragraph. The corpus must be made from KILT's
      knowledge source, so that the passages' metadata has ``wikipedia_id`` and paragraph numbers;
    - ``page``: to passages of its page, if it has no paragraph or the corpus lacks the paragraph;
    - ``title+answer``: to the passages with its title that contain an answer;
    - ``title``: to the first passage with its title.

    Of the passages of a paragraph or page, those that contain an answer are linked; if none does,
    all of the paragraph or the first of the page. A task with joint evidence links only one
    passage per reference. ``meta["link"]`` of an example is the least reliable way among its
    references, or ``none``. References that cannot be linked are kept as they are.

    Args:
        source: the file or dataset, as for `Task.read`.
        corpus: the corpus to link to.
        out: the JSONL file to write, plain or ``.gz``.
        task: the task of the examples.
        split: the split of a Hugging Face dataset, by default ``validation``; files have none.

    Returns:
        The number of examples linked in each way.

    Raises:
        ImpRAGError: the source is not in its format or ``out`` cannot be written.
    """
    linker = _Linker(corpus, task, task.read(source, split))
    counts = Counter(dict.fromkeys(LINKS, 0))

    def linked() -> Iterator[Example]:
        for example in tqdm(task.read(source, split), "linking", unit=" examples", disable=None):
            example = linker.link(example)
            counts[example.meta["link"]] += 1
            yield example

    write_examples(out, linked())
    return dict(counts)


class _Linker:
    """Links examples to a corpus; holds its rows for all pages and titles they refer to."""

    def __init__(self, corpus: Corpus, task: Task, examples: Iterator[Example]) -> None:
        self.corpus = corpus
        self.task = task
        pages: set[str | None] = set()
        titles: set[str] = set()
        for example in examples:
            for reference in itertools.chain.from_iterable(a.provenance for a in example.output):
                pages.add(_page(reference))
                titles.add(_title(reference.get("title")))
        self.rows_of_page: dict[str, list[int]] = defaultdict(list)
        self.rows_of_title: dict[str, list[int]] = defaultdict(list)
        for row, passage in enumerate(tqdm(corpus, "corpus", unit=" passages", disable=None)):
            page = _page(passage.meta)
            title = _title(passage.title)
            if page is not None and page in pages:
                self.rows_of_page[page].append(row)
            elif page is None and title and title in titles:
                self.rows_of_title[title].append(row)

    def link(self, example: Example) -> Example:
        # A label such as "True" is not a text to search for.
        answers = [] if self.task.metric == "accuracy" else example.answers
        output, ways = [], set()
        for item in example.output:
            provenance: list[Mapping[str, Any]] = []
            for reference in item.provenance:
                # An id from an earlier import belongs to another corpus.
                reference = {k: v for k, v in reference.items() if k != "passage_id"}
                way, passages = self._passages(reference, answers)
                ways.add(way)
                if way == "none":
                    provenance.append(reference)
                provenance += [{**reference, "passage_id": passage.id} for passage in passages]
            output.append(Answer(item.answer, provenance))
        example = replace(example, output=output)
        found = example.evidence_sets(joint=self.task.joint_evidence)
        way = max(ways - {"none"}, key=LINKS.index) if found else "none"
        return replace(example, meta={**example.meta, "link": way})

    def _passages(
        self, reference: Mapping[str, Any], answers: Sequence[str]
    ) -> tuple[str, list[Passage]]:
        page = _page(reference)
        if page in self.rows_of_page:
            candidates = self.corpus.passages(self.rows_of_page[page])
            paragraph = [passage for passage in candidates if _overlaps(passage.meta, reference)]
            way, candidates = ("paragraph", paragraph) if paragraph else ("page", candidates)
        else:
            rows = self.rows_of_title.get(_title(reference.get("title")), [])
            way, candidates = "title" if rows else "none", self.corpus.passages(rows)
        chosen = [passage for passage in candidates if contains_answer(passage.text, answers)]
        if chosen and way == "title":
            way = "title+answer"
        if not chosen:
            chosen = candidates if way == "paragraph" else candidates[:1]
        return way, chosen[:1] if self.task.joint_evidence else chosen


def _page(fields: Mapping[str, Any]) -> str | None:
    page = fields.get("wikipedia_id")
    return None if page is None else str(page).strip() or None


def _title(title: Any) -> str:
    return " ".join(str(title or "").replace("_", " ").split()).casefold()


def _overlaps(passage: Mapping[str, Any], reference: Mapping[str, Any]) -> bool:
    """Whether a passage contains some of the paragraphs of a reference."""
    first, last = _paragraphs(passage)
    start, end = _paragraphs(reference)
    return 0 <= first <= end and 0 <= start <= last


def _paragraphs(fields: Mapping[str, Any]) -> tuple[int, int]:
    """The first and last paragraph; -1 if they are unknown, as in KILT."""
    first, last = fields.get("start_paragraph_id"), fields.get("end_paragraph_id")
    return (first, last) if isinstance(first, int) and isinstance(last, int) else (-1, -1)
