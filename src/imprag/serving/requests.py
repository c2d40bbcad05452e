"""What is asked of the engine, and what it reports while it answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from imprag.errors import ImpRAGError
from imprag.model.attribution import Attribution
from imprag.model.schedule import PassagesKept
from imprag.retrieval.again import Retrieval
from imprag.retrieval.retriever import RetrievedPassage

FinishReason = Literal["stop", "length"]


class BusyError(ImpRAGError):
    """The queue is full, or the engine is shutting down; the request may be sent again.

    Attributes:
        retry_after: seconds after which a place is likely to be free.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TimeLimitError(ImpRAGError):
    """A request waited longer than its time limit and was not begun."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the most probable token.
        top_p: samples from the smallest set of tokens that has this probability.
        seed: makes the samples repeatable, whatever else runs; None draws a seed.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


@dataclass(frozen=True)
class EngineRequest:
    """One prompt with its settings.

    Attributes:
        prompt: the prompt, marked for its template by :meth:`imprag.ImpRAG.asked_prompts`.
        k: passages to retrieve; 0 retrieves none; None takes the model's number.
        passages: read these instead of retrieving.
        retrieval: name of the retriever; None takes the pipeline's.
        lexical_weight: for hybrid retrieval, the weight of the prompt's words in place of the gate.
        retrieve, passages_kept: when answers retrieve again, as for
            :meth:`imprag.ImpRAG.generate`; None takes the model's settings.
        max_new_tokens: the most new tokens of an answer.
        min_new_tokens: the fewest; before them no end token is chosen.
        stop: strings that end an answer and are not part of it.
        sampling: how the next token is chosen.
        n: number of answers; all read the same passages.
        attribution: say how much each passage was read.
        min_confidence: say how likely the answer is right, and withhold it where that is less; its
            text comes at the end. None says nothing.
        time_limit: seconds after which a waiting request fails with :class:`TimeLimitError` and a
            running answer ends with the reason ``length``; None is the engine's.
    """

    prompt: str
    k: int | None = None
    passages: Sequence[RetrievedPassage] | None = None
    retrieval: str | None = None
    lexical_weight: float | None = None
    retrieve: str | None = None
    passages_kept: PassagesKept | None = None
    max_new_tokens: int = 32
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ("\n",)
    sampling: Sampling = field(default_factory=Sampling)
    n: int = 1
    attribution: bool = False
    min_confidence: float | None = None
    time_limit: float | None = None

    @property
    def is_judged(self) -> bool:
        """Whether it asks for what is noted while an answer is written."""
        return self.attribution or self.min_confidence is not None


@dataclass(frozen=True)
class Retrieved:
    """The passages are known; comes once, before the first token.

    Attributes:
        passages: that the prompt reads, best first.
        prompt_tokens: tokens of the prompt, its template included.
        model_prompt: the prompt as the model reads it, in its template.
    """

    passages: list[RetrievedPassage]
    prompt_tokens: int
    model_prompt: str


@dataclass(frozen=True)
class NewText:
    """More text of an answer.

    Attributes:
        choice: number of the answer, 0 to n - 1.
        text: what follows the text so far; never empty.
    """

    choice: int
    text: str


@dataclass(frozen=True)
class Ended:
    """An answer is complete; comes once for each.

    Attributes:
        choice: number of the answer.
        text: the whole answer, stripped, as :meth:`imprag.ImpRAG.ask` returns it.
        reason: ``stop`` for an end token or stop string, ``length`` for a limit of tokens or time.
        tokens: number of its tokens.
        retrievals: what its later tokens retrieved.
        attribution, confidence, evidence, abstained: as in :class:`imprag.Answer`.
    """

    choice: int
    text: str
    reason: FinishReason
    tokens: int
    retrievals: Sequence[Retrieval] = ()
    attribution: Attribution | None = None
    confidence: float | None = None
    evidence: dict[str, float] | None = None
    abstained: bool = False


@dataclass(frozen=True)
class Completed:
    """The request is done; the last event unless it failed or was cancelled.

    Attributes:
        timings: seconds: ``queue`` (waiting), ``query``, ``search``, ``encode`` as in
            :class:`imprag.Answer`, ``first_token`` and ``total`` since the request came.
    """

    timings: dict[str, float]


@dataclass(frozen=True)
class Failed:
    """The request failed; the last event.

    Attributes:
        error: an :class:`ImpRAGError` for what the caller can mend; a
            :class:`~imprag.errors.FaultError` among them, or anything else, is a fault here.
    """

    error: Exception


EngineEvent = Retrieved | NewText | Ended | Completed | Failed
OnEvent = Callable[[EngineEvent], None]
"""Receives a request's events in order, in the engine's thread: it must not block."""
