"""Retrievers by name, for the option ``--retrieval``."""

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from imprag.corpus import Corpus
from imprag.io.registry import Registry
from imprag.retrieval.retriever import Retriever

if TYPE_CHECKING:
    from imprag.index.lexical import LexicalIndex
    from imprag.retrieval.dense import DenseRetriever
    from imprag.retrieval.gate import Gate
    from imprag.retrieval.hybrid import HybridRetriever
    from imprag.retrieval.implicit import ImplicitRetriever
    from imprag.retrieval.lexical import LexicalRetriever


class RetrieverContext:
    """What a retriever can be made of; each part is loaded when it is first asked for.

    Args:
        corpus: loads the passages.
        implicit: loads the model's own retriever.
        lexical: opens or makes the lexical index of the passages; by default one in the cache
            folder.
        gate: gives the weights of hybrid retrieval.
    """

    def __init__(
        self,
        corpus: Callable[[], Corpus],
        implicit: "Callable[[], ImplicitRetriever]",
        lexical: "Callable[[], LexicalIndex] | None" = None,
        gate: "Callable[[], Gate] | None" = None,
    ) -> None:
        self._load_corpus = corpus
        self._load_implicit = implicit
        self._load_lexical = lexical
        self._load_gate = gate

    @cached_property
    def corpus(self) -> Corpus:
        """The passages to search."""
        return self._load_corpus()

    @cached_property
    def implicit(self) -> "ImplicitRetriever":
        """The model's own retriever, with the model and its index."""
        return self._load_implicit()

    @cached_property
    def lexical(self) -> "LexicalIndex":
        """The lexical index of the passages."""
        from imprag.retrieval.lexical import cached_lexical_index

        return self._load_lexical() if self._load_lexical else cached_lexical_index(self.corpus)

    @property
    def gate(self) -> "Gate":
        """The weights of hybrid retrieval."""
        from imprag.retrieval.gate import Gate

        return self._load_gate() if self._load_gate else Gate.fixed(1.0)


#: Makes a retriever. It checks for optional packages before it asks for corpus or model.
RetrieverMaker = Callable[[RetrieverContext], Retriever]

#: Packages add retrievers under the entry-point group ``imprag.retrievers``: their makers, by the
#: name that ``--retrieval`` takes.
RETRIEVERS: Registry[RetrieverMaker] = Registry(
    "retriever",
    "imprag.retrievers",
    {name: f"{__name__}:make_{name}" for name in ("implicit", "lexical", "hybrid", "dense")},
)
register_retriever = RETRIEVERS.register


def make_implicit(context: RetrieverContext) -> "ImplicitRetriever":
    """The model's lower layers."""
    return context.implicit


def make_lexical(context: RetrieverContext) -> "LexicalRetriever":
    """BM25 of the prompt's words; no model runs."""
    from imprag.retrieval.lexical import LexicalRetriever

    return LexicalRetriever(context.corpus, context.lexical)


def make_hybrid(context: RetrieverContext) -> "HybridRetriever":
    """The model's lower layers and BM25, weighed for each prompt."""
    from imprag.retrieval.hybrid import HybridRetriever

    return HybridRetriever(context.implicit, context.lexical, context.gate)


def make_dense(context: RetrieverContext) -> "DenseRetriever":
    """all-MiniLM-L6-v2; embeds the corpus at the first use, into the cache folder."""
    from imprag.retrieval.dense import DenseRetriever, TextEncoder

    encoder = TextEncoder()
    return DenseRetriever(context.corpus, encoder)
