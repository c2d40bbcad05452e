"""A completion request becomes engine requests, and their events become answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from imprag.corpus import Passage
from imprag.errors import ImpRAGError
from imprag.retrieval import RetrievedPassage
from imprag.retrieval.retriever import LOGITS
from imprag.serving.citations import later_retrievals, passages_read
from imprag.serving.exchange import Numbered
from imprag.serving.replies import AnswerConfidence, AnswerShares, Details, Usage
from imprag.serving.requests import (
    Completed,
    Ended,
    EngineRequest,
    Retrieved,
    Sampling,
)
from imprag.serving.schema import Document, Generation, ImpRAGOptions
from imprag.serving.service import Service
from imprag.serving.texts import check_passages_fit

DEFAULT_TOKENS = 32
DEFAULT_STOP = ("\n",)


def engine_requests(
    service: Service,
    body: Generation,
    max_tokens: int | None,
    marked: Callable[[], list[str]],
) -> Callable[[], list[EngineRequest]]:
    """What makes the engine's requests; it takes time and is called in a thread.

    Args:
        service: the server.
        body: the request of the client, which is checked here.
        max_tokens: the most new tokens that it asks for.
        marked: makes the prompts, marked for their template.

    Raises:
        ImpRAGError: the body asks for what the server does not allow.
    """
    settings = service.settings
    service.check_number("n", body.n or 1, settings.max_n)
    tokens = max_tokens or min(DEFAULT_TOKENS, settings.max_tokens)
    service.check_number("max_tokens", tokens, settings.max_tokens)
    if body.stream_options is not None and not body.stream:
        raise ImpRAGError("stream_options has no effect without stream; leave it out")
    options = body.imprag or ImpRAGOptions()
    _check_retrieval(service, options, body.documents)
    stop = (body.stop,) if isinstance(body.stop, str) else body.stop
    found = options.retrieval or service.rag.retrieval
    ranked = body.documents is None and options.k != 0 and found in LOGITS
    least = settings.min_confidence if ranked else None  # it is fitted to the model's own scores
    sampling = Sampling(body.temperature or 0.0, _given(body.top_p, 1.0), body.seed)

    def make() -> list[EngineRequest]:
        passages = None
        if body.documents is not None:
            passages = given_passages(service, body.documents)
        return [
            EngineRequest(
                prompt,
                k=options.k,
                passages=passages,
                retrieval=options.retrieval,
                lexical_weight=options.lexical_weight,
                retrieve=options.retrieve,
                passages_kept=options.passages_kept,
                max_new_tokens=tokens,
                min_new_tokens=options.min_tokens or 0,
                stop=DEFAULT_STOP if stop is None else tuple(stop),
                sampling=sampling,
                n=body.n or 1,
                attribution=bool(options.attribution),
                min_confidence=_given(options.min_confidence, least),
            )
            for prompt in marked()
        ]

    return make


def _check_retrieval(
    service: Service, options: ImpRAGOptions, documents: list[Document] | None
) -> None:
    """Refuse options of retrieval that cannot be followed."""
    asked = options.model_dump(
        exclude_none=True, exclude={"min_tokens", "attribution", "min_confidence"}
    )
    if documents is not None and asked:
        names = " and ".join(f"imprag.{name}" for name in asked)
        raise ImpRAGError(f"with documents, nothing is retrieved: leave {names} out")
    if options.retrieval is not None:
        service.check_retrieval(options.retrieval)
    if options.k and options.k > (available := len(service.rag.corpus)):
        raise ImpRAGError(
            f"imprag.k is {options.k}, but the index has {available:,} passages; lower it"
        )
    service.check_number("imprag.k", options.k or 0, service.settings.max_passages)


def given_passages(service: Service, documents: Sequence[Document]) -> list[RetrievedPassage]:
    """The caller's documents as passages, in the given order.

    Raises:
        ImpRAGError: there are too many, or one is empty or longer than the model reads.
    """
    service.check_number("the number of documents", len(documents), service.settings.max_passages)
    passages = []
    for number, one in enumerate(documents):
        service.check_text(f"documents[{number}].text", one.text)
        passages.append(Passage(f"documents/{number}", one.title, one.text))
    check_passages_fit(service, passages, "documents")
    return [RetrievedPassage(passage, 0.0) for passage in passages]


@dataclass
class Outcome:
    """What is known of an exchange so far.

    Attributes:
        notes: what of the request was not used.
        retrieved: what each prompt reads.
        ended: the answers, by number of the prompt and of the answer.
        timings: of each completed prompt.
        n: number of answers to each prompt.
    """

    n: int
    notes: tuple[str, ...] = ()
    retrieved: dict[int, Retrieved] = field(default_factory=dict)
    ended: dict[tuple[int, int], Ended] = field(default_factory=dict)
    timings: dict[int, dict[str, float]] = field(default_factory=dict)

    def note(self, numbered: Numbered) -> None:
        """Take an event into account."""
        number, event = numbered
        match event:
            case Retrieved():
                self.retrieved[number] = event
            case Ended():
                self.ended[number, event.choice] = event
            case Completed():
                self.timings[number] = event.timings

    @property
    def usage(self) -> Usage:
        """Numbers of tokens of the prompts and of the answers that have ended."""
        prompt = sum(one.prompt_tokens for one in self.retrieved.values())
        completion = sum(one.tokens for one in self.ended.values())
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
        )

    @property
    def answers(self) -> list[tuple[int, Ended]]:
        """The answers that have ended, with their numbers in the response."""
        ended = sorted(self.ended.items(), key=lambda item: item[0])
        return [(number * self.n + choice, one) for (number, choice), one in ended]

    @property
    def details(self) -> Details:
        """ImpRAG's part of the response."""
        numbers = sorted(self.retrieved)
        return Details(
            passages=[
                passage
                for number in numbers
                for passage in passages_read(self.retrieved[number].passages, number)
            ],
            retrievals=[
                one
                for (number, _), ended in sorted(self.ended.items())
                for one in later_retrievals(number, ended)
            ],
            model_prompts=[self.retrieved[number].model_prompt for number in numbers],
            timings=[self.timings[number] for number in sorted(self.timings)],
            attributions=[
                AnswerShares(index=index, **ended.attribution.to_json())
                for index, ended in self.answers
                if ended.attribution is not None
            ],
            confidences=[
                AnswerConfidence(index=index, **{n: getattr(ended, n) for n in _JUDGED})
                for index, ended in self.answers
                if ended.confidence is not None
            ],
            notes=list(self.notes),
        )


_JUDGED = ("confidence", "evidence", "abstained")
T = TypeVar("T")


def _given(value: float | None, default: T) -> float | T:
    return default if value is None else value
