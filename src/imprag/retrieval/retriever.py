"""The contract of every retriever: prompts go in, passages with scores come out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from imprag.corpus import Corpus, Passage
from imprag.errors import ImpRAGError
from imprag.io.text_checks import check_several

if TYPE_CHECKING:
    from torch import Tensor

    from imprag.model.query import Queries

#: The kind of score that the model's own layers give: a logit, fit to bias attention.
IMPLICIT = "implicit"
#: The kind of score of the words that prompt and passage share.
LEXICAL = "lexical"
#: The kind of score that adds the weighted score of the prompt's words to the implicit one.
HYBRID = "hybrid"
#: The kinds of score that are logits of the model, fit to bias the attention to a passage.
LOGITS = frozenset({IMPLICIT, HYBRID})
#: The kind of score of passages that nobody retrieved: the caller's, or the gold ones.
GIVEN = "given"


@dataclass(frozen=True)
class RetrievedPassage:
    """A passage and its score for a prompt.

    Attributes:
        passage: the passage.
        score: the higher, the better; comparable within one kind only.
        row: of the passage in the retriever's corpus, if it comes from one.
        kind: what the score means: ``"implicit"`` (the model's own), ``"hybrid"``, ``"lexical"``,
            ``"dense"``, ``"given"``, or a plug-in's. Only implicit and hybrid scores, which are
            logits, bias the attention to a passage (the setting ``attention_score_bias``).
    """

    passage: Passage
    score: float
    row: int | None = None
    kind: str = GIVEN


class PromptBatch(NamedTuple):
    """Prompts that run through the model together.

    Attributes:
        texts: the prompts.
        input_ids: their tokens, (prompts, length).
    """

    texts: Sequence[str]
    input_ids: "Tensor"


class Retriever(Protocol):
    """Finds passages of a corpus for prompts.

    :class:`imprag.testing.retriever.RetrieverSuite` tests an implementation.
    """

    @property
    def corpus(self) -> Corpus:
        """The passages that are searched."""

    def retrieve(self, prompts: Sequence[str], k: int) -> list[list[RetrievedPassage]]:
        """The k best passages for every prompt, best first.

        A prompt's passages do not depend on the other prompts.

        Raises:
            ImpRAGError: k is larger than the corpus, or one text is given in place of a list.
        """

    def settings(self) -> Mapping[str, Any]:
        """What the results depend on besides prompts and corpus, for the recipe of a run; JSON."""


@runtime_checkable
class InPassRetriever(Retriever, Protocol):
    """A retriever that searches inside the prompt's own pass, at layer b."""

    def search(
        self, prompts: PromptBatch, queries: "Queries", k: int
    ) -> list[list[RetrievedPassage]]:
        """The k best passages for every prompt whose pass has reached layer b, best first.

        Args:
            prompts: the prompts.
            queries: their implicit queries.
            k: at most the number of passages.
        """


def check_retrieval(corpus: Corpus, prompts: Sequence[str], k: int) -> None:
    """Refuse what no retriever can do.

    Raises:
        ImpRAGError: k is larger than the corpus, or one text is given in place of a list.
    """
    check_several(prompts)
    if k > len(corpus):
        raise ImpRAGError(f"k is {k}, but the corpus has only {len(corpus)} passages")


def retrieved_passages(
    corpus: Corpus,
    rows: npt.NDArray[np.integer[Any]],
    scores: npt.NDArray[np.float32],
    kind: str,
) -> list[list[RetrievedPassage]]:
    """The passages behind the rows and scores of a search, (prompts, k) each."""
    passages: Iterator[Passage] = iter(corpus.passages(rows.ravel().tolist()))
    return [
        [RetrievedPassage(next(passages), *one, kind) for one in zip(found, row, strict=True)]
        for row, found in zip(rows.tolist(), scores.tolist(), strict=True)
    ]
