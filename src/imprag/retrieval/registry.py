"""Retrievers by name, for the option ``--retriever``."""

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from imprag.corpus import Corpus
from imprag.io.registry import Registry
from imprag.retrieval.retriever import Retriever

if TYPE_CHECKING:
    from imprag.retrieval.dense import DenseRetriever
    from imprag.retrieval.implicit import ImplicitRetriever
    from imprag.retrieval.lexical import BM25


class RetrieverContext:
    """What a retriever can be made of; each part is loaded when it is first asked for.

    Args:
        corpus: loads the passages.
        implicit: loads the model's own retriever.
    """

    def __init__(
        self, corpus: Callable[[], Corpus], implicit: "Callable[[], ImplicitRetriever]"
    ) -> None:
        self._load_corpus = corpus
        self._load_implicit = implicit

    @cached_property
    def corpus(self) -> Corpus:
        """The passages to search."""
        return self._load_corpus()

    @cached_property
    def implicit(self) -> "ImplicitRetriever":
        """The model's own retriever, with the model and its index."""
        return self._load_implicit()


#: Makes a retriever. It checks for optional packages before it asks for corpus or model.
RetrieverMaker = Callable[[RetrieverContext], Retriever]

#: Packages add retrievers under the entry-point group ``imprag.retrievers``: their makers, by the
#: name that ``--retriever`` takes.
RETRIEVERS: Registry[RetrieverMaker] = Registry(
    "retriever",
    "imprag.retrievers",
    {name: f"{__name__}:make_{name}" for name in ("self", "teacher", "bm25")},
)
register_retriever = RETRIEVERS.register


def make_self(context: RetrieverContext) -> "ImplicitRetriever":
    """The model's lower layers."""
    return context.implicit


def make_teacher(context: RetrieverContext) -> "DenseRetriever":
    """all-MiniLM-L6-v2; embeds the corpus at the first use, into the cache folder."""
    from imprag.retrieval.dense import DenseRetriever, TextEncoder

    encoder = TextEncoder()
    return DenseRetriever(context.corpus, encoder)


def make_bm25(context: RetrieverContext) -> "BM25":
    """BM25; indexes the corpus at the first use, into the cache folder."""
    from imprag.retrieval.lexical import BM25, require_bm25

    require_bm25()
    return BM25(context.corpus)
