"""An answer, and what is said of it: what was read for it, and how likely it is right."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Required, TypedDict

from imprag.model.attribution import Attribution, attribute, token_spans
from imprag.model.confidence import NOT_FOUND, Confidence, features, names_found
from imprag.retrieval.again import AnswerRetrievals, Retrieval
from imprag.retrieval.retriever import LOGITS, RetrievedPassage

if TYPE_CHECKING:
    from imprag.pipeline import ImpRAG


@dataclass(frozen=True)
class Answer:
    """The answer to one prompt.

    Attributes:
        prompt: the prompt as it was typed.
        text: the new text, without the prompt and the stop string; "not found in the corpus" if
            the confidence in it is too low.
        passages: the passages that were read, best first; those that later retrievals add follow.
        timings: seconds of the prompt's batch: ``query`` (prompt through layers 0..b-1),
            ``search``, ``encode`` (passages through layers 0..t, or from the KV cache),
            ``generate`` (the rest of the prompt's pass and all new tokens), ``total``.
        model_prompt: the prompt as the model read it, in its question or chat template.
        kv_hits, kv_misses: number of passages of the prompt's batch whose keys and values came from
            the KV cache, and that were encoded.
        retrievals: what the prompt retrieved, and each later token that retrieved again; [] if
            nothing was retrieved.
        attribution: how much each passage was read for each token; None if not asked for, or if
            the text was withheld.
        confidence: how likely the text that was written is right, 0 to 1; None if not asked for.
        evidence: the numbers that the confidence comes from, by name
            (:data:`imprag.model.confidence.FEATURES`); None if not asked for.
        abstained: whether the text was withheld.
    """

    prompt: str
    text: str
    passages: list[RetrievedPassage]
    timings: dict[str, float]
    model_prompt: str
    kv_hits: int
    kv_misses: int
    retrievals: list[Retrieval] = field(default_factory=list)
    attribution: Attribution | None = None
    confidence: float | None = None
    evidence: dict[str, float] | None = None
    abstained: bool = False


@dataclass(frozen=True)
class Judge:
    """Says of a complete answer what was read for it and how likely it is right.

    Attributes:
        tokenizer: the model's.
        attribution: whether the attribution is asked for.
        confidence: the model's; None if not asked for.
        least: the least confidence of an answer that is given.
    """

    tokenizer: Any
    attribution: bool
    confidence: Confidence | None
    least: float

    @classmethod
    def of(cls, rag: "ImpRAG", min_confidence: float | None, *, attribution: bool) -> "Judge":
        """The judge of a pipeline's answers.

        Raises:
            ImpRAGError: confidence is asked for, but the model has none.
        """
        asked = min_confidence is not None
        confidence = (
            Confidence.of_model(rag.config.confidence, rag.config.base_model) if asked else None
        )
        return cls(rag.tokenizer, attribution, confidence, min_confidence or 0.0)

    def __call__(
        self,
        tokens: Sequence[int],
        text: str,
        read: AnswerRetrievals,
        shares: Sequence[list[float]],
        log_probabilities: Sequence[float],
    ) -> "Judged":
        """The answer's ``text``, ``attribution``, ``confidence``, ``evidence`` and ``abstained``.

        Args:
            tokens: the new tokens.
            text: the answer.
            read: what was retrieved and read. Only the prompt's own ranking counts as evidence:
                scores of different queries do not compare.
            shares: of each token, if noted.
            log_probabilities: of each token, if noted.
        """
        if not self.attribution and self.confidence is None:
            return Judged(text=text)
        spans = token_spans(self.tokenizer, tokens, text)
        attribution = attribute(spans, shares, text, len(read.passages))
        judged = Judged(text=text)
        if self.attribution:
            judged["attribution"] = attribution
        if self.confidence is not None:
            own = [
                p for p, (start, end) in zip(log_probabilities, spans, strict=False) if start < end
            ]
            found = read.retrievals[0].passages
            ranked = all(one.kind in LOGITS for one in found)
            scores = [one.score for one in found] if ranked else []
            texts = [f"{one.passage.title}\n{one.passage.text}" for one in read.passages]
            names = names_found(read.prompt, read.last_part(text), texts)
            evidence = features(scores, attribution.shares, own, names)
            # An answer without words says nothing that could be right.
            confidence = self.confidence.of(evidence) if text.strip() else 0.0
            judged |= {"evidence": evidence, "confidence": confidence}
            if confidence < self.least:
                judged |= {"text": NOT_FOUND, "abstained": True, "attribution": None}
        return judged


class Judged(TypedDict, total=False):
    """What a `Judge` says, by the names of `Answer`'s attributes."""

    text: Required[str]
    attribution: Attribution | None
    confidence: float | None
    evidence: dict[str, float] | None
    abstained: bool


class AnswerStream(Generator[str, None, Answer]):
    """The text of an answer, piece by piece.

    Args:
        pieces: yields the text and returns the answer.

    Attributes:
        answer: the whole answer; None before its last piece has come.
    """

    def __init__(self, pieces: Generator[str, None, Answer]) -> None:
        self._pieces = pieces
        self.answer: Answer | None = None

    def send(self, value: None) -> str:
        """The next piece."""
        try:
            return self._pieces.send(value)
        except StopIteration as end:
            self.answer = end.value or self.answer
            raise

    def throw(self, *failure: Any) -> str:
        """Stop generation at the next token; ``close`` does so, too."""
        return self._pieces.throw(*failure)
