"""Generation for a batch of prompts: retrieval, passage KV, stop strings, streaming, timings."""

import math
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Required, TypedDict

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList, TextIteratorStreamer

from imprag.errors import ImpRAGError
from imprag.model.attribution import Attribution, ReadingShares, attribute, token_spans
from imprag.model.confidence import (
    NOT_FOUND,
    Confidence,
    TokenProbabilities,
    check_min_confidence,
    features,
)
from imprag.model.generate import fixed
from imprag.model.generate_arguments import CALLBACKS, CHOICES, check_arguments
from imprag.model.kv import PassageKV, score_bias
from imprag.model.query import Queries
from imprag.model.schedule import RetrievalSchedule
from imprag.model.text import prompt_batch, text_read
from imprag.retrieval.again import AnswerRetrievals, LaterSearch, Retrieval
from imprag.retrieval.retriever import LOGITS, InPassRetriever, PromptBatch, RetrievedPassage

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
class GenerationSettings:
    """Settings of generation.

    Attributes:
        max_new_tokens: the most new tokens of an answer.
        stop: strings that end an answer.
        arguments: further arguments of ``generate``, checked.
        attribution: sum up what each token read.
        min_confidence: withhold answers with less; None computes no confidence.
    """

    max_new_tokens: int
    stop: Sequence[str]
    arguments: dict[str, Any]
    attribution: bool = False
    min_confidence: float | None = None

    @classmethod
    def of(
        cls,
        max_new_tokens: int,
        stop: Sequence[str] | str | None,
        arguments: dict[str, Any],
        attribution: bool = False,
        min_confidence: float | None = None,
    ) -> "GenerationSettings":
        """Check and bundle the settings.

        Raises:
            ImpRAGError: an argument does not work with retrieval, or a stop string is empty.
        """
        check_min_confidence(min_confidence)
        arguments = _checked(arguments, max_new_tokens)
        length = arguments.pop("max_new_tokens")
        return cls(length, _stops(stop), arguments, attribution, min_confidence)


class GenerationBatch:
    """One batch of prompts: generates answers, holds the retrieved passages, and measures times.

    Args:
        rag: the pipeline with model, index and KV cache.
        prompts: the prompts of the batch.
        k: number of passages to retrieve per prompt; None takes the configured number.
        passages: read these passages instead of retrieving.
        settings: settings of generation.
        schedule: which later tokens retrieve again.

    Raises:
        ImpRAGError: a prompt is too long, k is larger than the index, or there is no index.
    """

    def __init__(
        self,
        rag: "ImpRAG",
        prompts: Sequence[str],
        k: int | None,
        passages: Sequence[Sequence[RetrievedPassage]] | None,
        settings: GenerationSettings,
        schedule: RetrievalSchedule,
    ) -> None:
        self.rag = rag
        self.prompts = prompts
        self.settings = settings
        given = [] if passages is None else [found for row in passages for found in row]
        if not all(isinstance(found, RetrievedPassage) for found in given):
            raise ImpRAGError(
                "passages must be RetrievedPassage(passage, score), as retrieve returns them"
            )
        # The shift of positions must be known before the prompt's room is computed.
        self.k = rag.passages_to_read(k) if passages is None else 0
        self._retrieved = self.k > 0
        self._later: LaterSearch | None = None
        if schedule.again:
            if k == 0:
                raise ImpRAGError("k is 0, so nothing is retrieved: leave out k or retrieve")
            count = self.k or rag.passages_to_read(k)
            text = partial(rag.tokenizer.decode, skip_special_tokens=True)
            self._later = LaterSearch(schedule, rag.retriever, count, self._encode_one, text)
        start = time.perf_counter()
        if self.k and not isinstance(rag.retriever, InPassRetriever):
            passages, self.k = rag.retriever.retrieve(prompts, self.k), 0
        searched = time.perf_counter() - start
        self.found = [[] for _ in prompts] if passages is None else [list(p) for p in passages]
        self.timings = dict.fromkeys(("query", "search", "encode", "generate", "total"), 0.0)
        self.timings["search"] = searched
        self.retrieves = self.k > 0
        counts = [self.k if self.retrieves else len(row) for row in self.found]
        shifts = [rag.config.position_shift(count) for count in counts]
        room = rag.model.positions_limit - max(shifts) - settings.max_new_tokens
        self.input_ids, self.mask = prompt_batch(
            rag.tokenizer, prompts, max(room, 0), rag.model.device
        )
        self.shift = torch.tensor(shifts, device=rag.model.device)
        self.hits = self.misses = 0
        judged = settings.min_confidence is not None
        self.judge = Judge.of(rag, settings.min_confidence, attribution=settings.attribution)
        self.shares = ReadingShares(rag.model.decoder) if settings.attribution or judged else None
        self.probabilities = TokenProbabilities() if judged else None
        self._answers: list[AnswerRetrievals] = []

    @torch.inference_mode()
    def generate(
        self, *, streamer: TextIteratorStreamer | None = None, left: threading.Event | None = None
    ) -> Tensor:
        """The new tokens, (prompts, length).

        Args:
            streamer: receives the tokens one by one.
            left: stops generation at the next token when it is set.
        """
        self._last = time.perf_counter()
        retrieve = self._retrieve if self.retrieves else fixed(self._encode(self.found))
        arguments = {**self.settings.arguments}
        if streamer is not None:
            arguments["streamer"] = streamer
        ends: list[Any] = [*(arguments.pop("stopping_criteria", None) or ())]
        if self.settings.stop:
            ends.append(_StopAt(self.settings.stop, self.rag.tokenizer, self.input_ids.shape[1]))
        if left is not None:
            ends.append(_StopWhen(left))
        if self.probabilities is not None:
            others = arguments.get("logits_processor") or ()
            arguments["logits_processor"] = LogitsProcessorList([*others, self.probabilities])
        self._answers = []
        output: Tensor = self.rag.model.generate(
            self.input_ids,
            self.mask,
            retrieve,
            position_shift=self.shift,
            shares=self.shares,
            again=None if self._later is None else self,
            stopping_criteria=StoppingCriteriaList(ends),
            **{"do_sample": False, "max_new_tokens": self.settings.max_new_tokens, **arguments},
        )
        if self.probabilities is not None:
            self.probabilities.note(output[:, -1])
        self._lap("generate")
        self.timings["total"] = sum(self.timings.values())
        return output[:, self.input_ids.shape[1] :]

    def answers(self, tokens: Tensor) -> list[Answer]:
        """The answers: texts of the new tokens, cut at the stop strings."""
        decoded = self.rag.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        texts = ["".join(until_stop([text], self.settings.stop)) for text in decoded]
        return [
            self._answer(row, tokens[row].tolist(), text.strip()) for row, text in enumerate(texts)
        ]

    def _answer(self, row: int, tokens: list[int], text: str) -> Answer:
        prompt, read = self.prompts[row], self._retrievals()[row]
        shares = [] if self.shares is None else read.shares(self.shares.of_row(row))
        probabilities = [] if self.probabilities is None else self.probabilities.of_row(row)
        return Answer(
            prompt=str(prompt),
            passages=read.passages,
            timings=self.timings,
            model_prompt=text_read(self.rag.tokenizer, prompt),
            kv_hits=self.hits,
            kv_misses=self.misses,
            retrievals=[one for one in read.retrievals if one.tokens or self._retrieved],
            **self.judge(tokens, text, read.passages, shares, probabilities),
        )

    def _retrievals(self) -> list[AnswerRetrievals]:
        """What each answer reads; known when the prompts have retrieved."""
        if not self._answers:
            both = zip(self.prompts, self.found, strict=True)
            self._answers = [AnswerRetrievals(self._later, *one) for one in both]
        return self._answers

    def due(self, answers: Tensor) -> list[int]:
        """The rows whose last token retrieves again; see `RetrieveAgain`."""
        self._new = answers
        rows = enumerate(zip(self._retrievals(), answers.tolist(), strict=True))
        return [n for n, (one, tokens) in rows if one.due(tokens)]

    def __call__(
        self, rows: Sequence[int], queries: Queries, read: Sequence[PassageKV]
    ) -> list[PassageKV]:
        """What rows read from their last token on; see `RetrieveAgain`."""
        self._lap("generate")
        ids = torch.cat([self.input_ids, self._new], dim=1)
        kvs = [
            self._answers[row].again(self._new[row].tolist(), ids[row : row + 1], own, kv)
            for row, own, kv in zip(rows, queries.split(), read, strict=True)
        ]
        self._lap("search")
        return kvs

    def stream(self) -> Generator[str, None, Answer]:
        """The text of the first prompt's answer, piece by piece.

        Generation runs in its own thread, which stops at the next token when the iterator is
        closed. The generator returns the answer.
        """
        tokenizer = self.rag.tokenizer
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        left = threading.Event()
        failure: list[BaseException] = []
        made: list[Tensor] = []

        def work() -> None:
            try:
                made.append(self.generate(streamer=streamer, left=left))
            except BaseException as error:
                failure.append(error)
                streamer.end()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        held = self.settings.min_confidence is not None
        try:
            for piece in until_stop(streamer, self.settings.stop):
                if not held:
                    yield piece
        finally:
            left.set()
            thread.join()
        if failure:
            raise failure[0]
        answer = self.answers(made[0])[0]
        if held:  # it is only known now whether it is given
            yield answer.text
        return answer

    def _retrieve(self, queries: Queries) -> PassageKV:
        retriever = self.rag.retriever
        assert isinstance(retriever, InPassRetriever)
        self._lap("query")
        self.found = retriever.search(PromptBatch(self.prompts, self.input_ids), queries, self.k)
        self._lap("search")
        return self._encode(self.found)

    def _encode_one(self, found: list[RetrievedPassage]) -> PassageKV:
        """The passage KV of a later retrieval."""
        self._lap("search")
        return self._encode([found])

    def _encode(self, found: Sequence[Sequence[RetrievedPassage]]) -> PassageKV:
        cache = self.rag.kv_cache
        hits, misses = cache.hits, cache.misses
        kv = read_passages(self.rag, found)
        self.hits += cache.hits - hits
        self.misses += cache.misses - misses
        self._lap("encode")
        return kv

    def _lap(self, name: str) -> None:
        now = time.perf_counter()
        self.timings[name] += now - self._last
        self._last = now


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
        found: Sequence[RetrievedPassage],
        shares: Sequence[list[float]],
        log_probabilities: Sequence[float],
    ) -> "Judged":
        """The answer's ``text``, ``attribution``, ``confidence``, ``evidence`` and ``abstained``.

        Args:
            tokens: the new tokens.
            text: the answer.
            found: the passages that were read.
            shares: of each token, if noted.
            log_probabilities: of each token, if noted.
        """
        if not self.attribution and self.confidence is None:
            return Judged(text=text)
        read = attribute(self.tokenizer, tokens, shares, text, len(found))
        judged = Judged(text=text)
        if self.attribution:
            judged["attribution"] = read
        if self.confidence is not None:
            spans = token_spans(self.tokenizer, tokens, text)
            own = [
                p for p, (start, end) in zip(log_probabilities, spans, strict=False) if start < end
            ]
            ranked = all(one.kind in LOGITS for one in found)
            scores = [one.score for one in found] if ranked else []
            evidence = features(scores, read.shares, own)
            confidence = self.confidence.of(evidence)
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


NEGLIGIBLE = -12.0
"""The bias of a passage that is not read: its tokens would weigh e^-12 of the best one's."""


def read_passages(rag: "ImpRAG", found: Sequence[Sequence[RetrievedPassage]]) -> PassageKV:
    """The passage KV of every prompt, with the bias of its passages' scores.

    Passages that are encoded independently and whose bias is at most ``NEGLIGIBLE`` are not read:
    they take no time and have no tokens in the result.

    Args:
        rag: the pipeline with model and KV cache.
        found: the passages of each prompt.
    """
    weight = rag.config.attention_score_bias
    biases = [_biases(row, weight) for row in found]
    if not any(map(any, biases)):
        return rag.kv_cache.kv([[one.passage for one in row] for row in found])
    lowest = NEGLIGIBLE if rag.config.passage_encoding == "independent" else -math.inf
    read = [[bias > lowest for bias in row] for row in biases]
    kv = rag.kv_cache.kv(
        [
            [one.passage for one, is_read in zip(*row, strict=True) if is_read]
            for row in zip(found, read, strict=True)
        ]
    )
    lengths = [
        [next(tokens) if is_read else 0 for is_read in row]
        for row, tokens in zip(read, map(iter, kv.lengths), strict=True)
    ]
    return replace(kv, lengths=lengths, passage_bias=biases)


def _biases(found: Sequence[RetrievedPassage], weight: float) -> list[float]:
    """The bias of each passage; 0 where scores mean something else than a logit."""
    if not all(one.kind in LOGITS for one in found):
        return [0.0] * len(found)
    return score_bias([one.score for one in found], weight)


class _StopAt:
    """A stopping criterion: ends a row when its new text contains a stop string."""

    def __init__(self, stop: Sequence[str], tokenizer: Any, prompt_length: int) -> None:
        self.stop = stop
        self.tokenizer = tokenizer
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        texts = self.tokenizer.batch_decode(input_ids[:, self.prompt_length :])
        ended = [any(stop in text.lstrip() for stop in self.stop) for text in texts]
        return torch.tensor(ended, device=input_ids.device)


class _StopWhen:
    """A stopping criterion: ends all rows when an event is set."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


def _checked(arguments: dict[str, Any], max_new_tokens: int) -> dict[str, Any]:
    """Checked arguments of ``generate``, with those of a generation configuration merged in."""
    arguments = {**arguments, "max_new_tokens": max_new_tokens}
    arguments = check_arguments(arguments, {*CHOICES, *CALLBACKS})
    criteria = arguments.get("stopping_criteria")
    if criteria is not None and not isinstance(criteria, list | tuple):
        arguments["stopping_criteria"] = [criteria]
    config = arguments.pop("generation_config", None)
    if config is not None:
        chosen = {name: value for name, value in config.to_diff_dict().items() if name in CHOICES}
        # Only the length has a default here; the configuration's length replaces it.
        arguments = {
            **chosen,
            **arguments,
            **{n: x for n, x in chosen.items() if n == "max_new_tokens"},
        }
    return arguments


def _stops(stop: Sequence[str] | str | None) -> Sequence[str]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if not all(isinstance(text, str) and text for text in stops):
        raise ImpRAGError("stop must be strings that are not empty")
    return stops


def until_stop(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """The text from its first character that is not white space to the first stop string."""
    held, begun = "", False
    for piece in pieces:
        held = held + piece if begun else (held + piece).lstrip()
        begun = begun or bool(held)
        ends = [held.index(text) for text in stop if text in held]
        if ends:
            yield held[: min(ends)]
            return
        keep = begun_stop(held, stop)
        yield held[: len(held) - keep]
        held = held[len(held) - keep :]
    yield held


def begun_stop(text: str, stop: Sequence[str]) -> int:
    """Number of characters at the end of the text that may be the beginning of a stop string."""
    return max(
        (
            n
            for one in stop
            for n in range(1, min(len(one), len(text) + 1))
            if text.endswith(one[:n])
        ),
        default=0,
    )
