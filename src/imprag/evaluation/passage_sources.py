"""Where the passages of an evaluation come from: a retriever, the gold ones, or none."""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from imprag.corpus import Corpus, load_corpus
from imprag.errors import ImpRAGError
from imprag.evaluation.visible import VisibleCharacters, visible_characters
from imprag.index.folder import IndexFolder
from imprag.retrieval.hybrid import HybridRetriever
from imprag.retrieval.retriever import HYBRID, IMPLICIT, RetrievedPassage, Retriever
from imprag.tasks import Example, Task, load_benchmark

if TYPE_CHECKING:
    from imprag.pipeline import ImpRAG

QueryTemplate = Literal["none", "oracle"]

_MENTION = re.compile(r"\[START\](.*?)\[END\]", re.DOTALL)


class Question(NamedTuple):
    """An example as it is put to a system."""

    task: Task
    example: Example
    prompt: str


@dataclass(frozen=True)
class PassageSource:
    """Finds passages for questions.

    Attributes:
        name: for recipe and report.
        find: from questions and k to at most k passages of each, best first.
        corpus: that the passages belong to.
        ranks: whether it is a retriever, whose rankings are to be measured.
        details: what its findings depend on besides the corpus, for the recipe.
        visible: how many characters of a passage it sees, if it is a model with a limit.
        asks_again: whether it is the answering model's own index, which later tokens can search.
    """

    name: str
    find: Callable[[Sequence[Question], int], list[list[RetrievedPassage]]]
    corpus: Corpus | None
    ranks: bool = True
    details: Mapping[str, Any] = field(default_factory=dict)
    visible: VisibleCharacters | None = None
    asks_again: bool = False


def choose_corpus(corpus: str | None, index: Path | None, data: Path | None) -> Corpus:
    """The passages for everything but the model's own retrieval.

    Args:
        corpus: what :func:`imprag.corpus.load_corpus` takes.
        index: an index folder, whose passages are taken if ``corpus`` is not given.
        data: a benchmark folder, whose corpus is taken if neither is given; without any of the
            three, the built-in corpus.

    Raises:
        ImpRAGError: the benchmark does not name its corpus, or there is no such corpus.
    """
    if corpus is not None:
        return load_corpus(corpus)
    if index is not None:
        return IndexFolder.open(index).corpus
    named = {"name": "default"} if data is None else load_benchmark(data).get("corpus")
    if not isinstance(named, dict) or not isinstance(named.get("name"), str):
        raise ImpRAGError(f"{data} does not say what its corpus is; name one with --corpus")
    return load_corpus(named["name"])


def own_retrieval(rag: "ImpRAG") -> PassageSource:
    """The model's own retrieval, implicit or hybrid: the prompt is the query."""

    def find(questions: Sequence[Question], k: int) -> list[list[RetrievedPassage]]:
        return rag.retrieve([question.prompt for question in questions], k, raw=True)

    details = rag.retriever.settings()
    name = HYBRID if isinstance(rag.retriever, HybridRetriever) else IMPLICIT
    seen = visible_characters(rag)
    return PassageSource(name, find, rag.index.corpus, True, details, seen, asks_again=True)


def text_retrieval(
    name: str, retriever: Retriever, query_template: QueryTemplate = "none"
) -> PassageSource:
    """A retriever that may be asked something else than the prompt, such as BM25.

    Args:
        name: of the retriever.
        retriever: finds the passages.
        query_template: what it is asked: the whole prompt, or the query that a person would write
            (:func:`oracle_query`).
    """

    def find(questions: Sequence[Question], k: int) -> list[list[RetrievedPassage]]:
        if query_template == "oracle":
            return retriever.retrieve([oracle_query(asked.example) for asked in questions], k)
        return retriever.retrieve([asked.prompt for asked in questions], k)

    details = {"query_template": query_template, **retriever.settings()}
    return PassageSource(name, find, retriever.corpus, True, details)


def without_gold(source: PassageSource) -> PassageSource:
    """A retriever whose corpus lacks the passages that prove the answers: nothing tells them.

    Other passages may still contain an answer by chance. Answers do not retrieve again, because
    their later tokens would search the whole corpus.

    Args:
        source: a retriever.
    """

    def find(questions: Sequence[Question], k: int) -> list[list[RetrievedPassage]]:
        gold = [set(question.example.gold_ids) for question in questions]
        most = k + max(map(len, gold))
        if source.corpus is not None:
            most = min(most, len(source.corpus))
        found = source.find(questions, most)
        return [
            [one for one in row if one.passage.id not in ids][:k]
            for row, ids in zip(found, gold, strict=True)
        ]

    details = {**source.details, "without_gold": True}
    return replace(source, find=find, ranks=False, details=details, asks_again=False)


def gold_passages(corpus: Corpus) -> PassageSource:
    """The passages that prove the answers, and nothing else."""

    def find(questions: Sequence[Question], k: int) -> list[list[RetrievedPassage]]:
        gold = [corpus.rows(question.example.gold_ids[:k]) for question in questions]
        return [_given(corpus, rows, rows) for rows in gold]

    return PassageSource("oracle", find, corpus, ranks=False)


def gold_among(corpus: Corpus, n: int, seed: int = 0) -> PassageSource:
    """The first gold passage, hidden among others: it takes reading, but no retrieval, to find it.

    Where a task asks for joint evidence, all passages of the first answer's are there. The others
    are drawn from the corpus by the seed and the example's id; none of them is gold.

    Args:
        n: passages of each question, which stand in random order.

    Raises:
        ImpRAGError: the corpus has fewer than n passages.
    """
    if not 1 <= n <= len(corpus):
        raise ImpRAGError(
            f"the gold passage cannot be among {n} passages of a corpus of {len(corpus)}"
        )

    def passages_of(question: Question, k: int) -> list[RetrievedPassage]:
        example = question.example
        evidence = example.evidence_sets(joint=question.task.joint_evidence)
        if not evidence:
            return []
        all_gold = corpus.rows(example.gold_ids)
        gold = corpus.rows([id for id in example.gold_ids if id in evidence[0]][:k])
        generator = random.Random(f"{seed} {example.id}")
        drawn = generator.sample(range(len(corpus)), min(k + len(all_gold), len(corpus)))
        rows = [*gold, *(row for row in drawn if row not in all_gold)][:k]
        generator.shuffle(rows)
        return _given(corpus, rows, gold)

    def find(questions: Sequence[Question], k: int) -> list[list[RetrievedPassage]]:
        return [passages_of(question, min(n, k)) for question in questions]

    return PassageSource("oracle", find, corpus, ranks=False, details={"among": n, "seed": seed})


def no_passages() -> PassageSource:
    """Nothing: what the model knows by itself."""
    return PassageSource("none", lambda questions, k: [[] for _ in questions], None, ranks=False)


def oracle_query(example: Example) -> str:
    """The query that a person would write for a text retriever (the paper's Table 4).

    The mention alone in entity linking, entity and relation without ``[SEP]``, else the bare input
    without the template's instructions.
    """
    if mention := _MENTION.search(example.input):
        return mention[1].strip()
    return " ".join(example.input.replace("[SEP]", " ").split())


def _given(corpus: Corpus, rows: Sequence[int], gold: Sequence[int]) -> list[RetrievedPassage]:
    """Passages that nobody retrieved; the gold ones score 1, the others 0."""
    return [
        RetrievedPassage(passage, float(row in gold), row)
        for row, passage in zip(rows, corpus.passages(rows), strict=True)
    ]
