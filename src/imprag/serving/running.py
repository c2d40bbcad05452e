"""The state of requests and answers while the engine works on them."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from imprag.generation import Judge
from imprag.model.attribution import ReadingShares
from imprag.model.decoding import LaterRows
from imprag.model.kv import PassageKV
from imprag.model.query import Queries
from imprag.retrieval.again import AnswerRetrievals, LaterSearch
from imprag.retrieval.retriever import RetrievedPassage, Retriever
from imprag.serving.answer_text import AnswerText
from imprag.serving.requests import (
    Completed,
    Ended,
    EngineEvent,
    EngineRequest,
    Failed,
    FinishReason,
    NewText,
    OnEvent,
)
from imprag.serving.sampler import Sampler


class Ticket:
    """A submitted request."""

    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        """End the request at the next token; it reports no further event."""
        self.cancelled = True


class RunningRequest:
    """A request in the engine, from its arrival to its last event.

    Args:
        request: the prompt with its settings.
        on_event: receives the events.
        ids: the prompt's tokens.
        shift: of the prompt's positions.
        retriever: finds its passages; None if it reads given ones or none.
        k: number of passages to retrieve.
        judge: says of its answers what is asked for.
        time_limit: seconds from now; None for no limit.
        later: how its answers retrieve again, if they do.

    Attributes:
        found: the passages that it reads.
        shares: of what is read for the first token, if asked for.
        answers: number of answers that have not ended.
        timings: seconds by part, as in :class:`Completed`.
        outcome: how it ended: ``completed``, ``cancelled`` or ``failed``; None before.
        ticket: cancels it.
    """

    def __init__(
        self,
        request: EngineRequest,
        on_event: OnEvent,
        ids: Sequence[int],
        shift: int,
        retriever: Retriever | None,
        k: int,
        judge: Judge,
        time_limit: float | None,
        later: LaterSearch | None = None,
    ) -> None:
        self.request = request
        self.on_event = on_event
        self.ids = list(ids)
        self.shift = shift
        self.retriever = retriever
        self.k = k
        self.judge = judge
        self.later = later
        self.ticket = Ticket()
        self.found: list[RetrievedPassage] = []
        self.shares: list[list[float]] = []
        self.answers = 0
        self.timings: dict[str, float] = {}
        self._outcome: str | None = None
        self.arrived = self._last = time.perf_counter()
        self._deadline = None if time_limit is None else self.arrived + time_limit

    @property
    def outcome(self) -> str | None:
        return "cancelled" if self._outcome is None and self.ticket.cancelled else self._outcome

    @property
    def over(self) -> bool:
        """Whether no further event will be reported."""
        return self.outcome is not None

    @property
    def late(self) -> bool:
        """Whether its time limit has passed."""
        return self._deadline is not None and time.perf_counter() > self._deadline

    def begin(self) -> None:
        """Note the end of its waiting; beginning again changes nothing."""
        if "queue" not in self.timings:
            self.lap("queue")

    def lap(self, name: str) -> None:
        """Note the seconds since the last lap."""
        now = time.perf_counter()
        self.timings[name] = now - self._last
        self._last = now

    def report(self, event: EngineEvent) -> None:
        """Hand an event over, unless the request is over; a receiver that fails cancels it."""
        if self.over:
            return
        try:
            self.on_event(event)
        except Exception:
            self.ticket.cancel()

    def complete(self) -> None:
        """Report that all answers have ended."""
        self.timings["total"] = time.perf_counter() - self.arrived
        self.report(Completed(self.timings))
        self._outcome = self.outcome or "completed"

    def fail(self, error: Exception) -> None:
        """Report an error, unless the request is over."""
        self.report(Failed(error))
        self._outcome = self.outcome or "failed"


class RunningAnswer:
    """One answer of a request while its tokens are made.

    Args:
        run: its request.
        choice: its number.
        tokenizer: the model's.
        config: the model's generation settings.
        ends: the tokens that end an answer.

    Attributes:
        tokens: those of the answer so far, with the end token.
        text: the text of the tokens.
        ended: whether it is complete.
    """

    def __init__(
        self,
        run: RunningRequest,
        choice: int,
        tokenizer: Any,
        config: GenerationConfig,
        ends: Sequence[int],
    ) -> None:
        self.run = run
        self.choice = choice
        self.tokens: list[int] = []
        self.text = AnswerText(tokenizer, run.request.stop)
        self.ended = False
        self._retrievals = AnswerRetrievals(run.later, run.request.prompt, run.found)
        self._shares = [*run.shares]
        self._log_probabilities: list[float] = []
        self._held = run.request.min_confidence is not None
        self._sampler = Sampler(run.request.sampling, choice, config, ends)
        self._last = run.arrived

    def choose(self, logits: Tensor) -> int:
        """The next token for these logits, (vocabulary,)."""
        may_end = len(self.tokens) >= self.run.request.min_new_tokens
        token, log_probability = self._sampler.choose(
            [*self.run.ids, *self.tokens], logits, may_end=may_end
        )
        if self._held:
            self._log_probabilities.append(log_probability())
        return token

    def note_shares(self, shares: ReadingShares | None, row: int) -> None:
        """Note what was read for the next token in a row of the batch."""
        if shares is not None and self.run.request.is_judged:
            self._shares += shares.of_row(row)

    @property
    def due(self) -> bool:
        """Whether its last token retrieves again."""
        return self._retrievals.due(self.tokens)

    def retrieve(self, queries: Queries, kv: PassageKV) -> PassageKV:
        """What it reads from its last token on, after ``kv``.

        A retrieval that fails ends the request alone.
        """
        began = time.perf_counter()
        ids = torch.tensor([[*self.run.ids, *self.tokens]], device=queries.embeddings.device)
        try:
            return self._retrievals.again(self.tokens, ids, queries, kv)
        except Exception as error:
            self.run.fail(error)
            return kv
        finally:
            self.run.timings["search"] += time.perf_counter() - began

    def note_token(self) -> float:
        """Seconds since the token before, or since the request arrived."""
        now = time.perf_counter()
        waited, self._last = now - self._last, now
        self.run.timings.setdefault("first_token", waited)
        return waited

    def push(self, token: int, *, is_end: bool) -> list[EngineEvent]:
        """Append a token: the text that is certain now and was not before, if any."""
        self.tokens.append(token)
        text = "" if is_end else self.text.push(token)
        return [NewText(self.choice, text)] if text and not self._held else []

    def end(self, reason: FinishReason) -> list[EngineEvent]:
        """Complete the answer: the text that was held back, and its end."""
        self.ended = True
        rest, read = self.text.finish(), self._retrievals
        shares = read.shares(self._shares)
        judged = self.run.judge(self.tokens, self.text.text, read, shares, self._log_probabilities)
        if self._held:
            rest = judged["text"]
        later = read.retrievals[1:]
        ended = Ended(
            self.choice, reason=reason, tokens=len(self.tokens), retrievals=later, **judged
        )
        return [*self._new(rest), ended]

    def _new(self, text: str) -> list[EngineEvent]:
        return [NewText(self.choice, text)] if text else []


def last_tokens(answers: Sequence[RunningAnswer]) -> tuple[list[int], LaterRows]:
    """The last token of each answer, and which of them retrieve, for a step of their batch."""

    def retrieve(
        rows: Sequence[int], queries: Queries, read: Sequence[PassageKV]
    ) -> list[PassageKV]:
        both = zip(queries.split(), read, strict=True)
        return [answers[row].retrieve(*one) for row, one in zip(rows, both, strict=True)]

    due = [n for n, answer in enumerate(answers) if answer.due]
    return [answer.tokens[-1] for answer in answers], (due, retrieve)
