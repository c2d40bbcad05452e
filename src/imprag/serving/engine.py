"""The engine: answers many requests at once; they join and leave its batch between two tokens.

One thread does all the work. It takes waiting requests while there are free slots, runs their
prompts through the model (retrieval included), and then makes one token of every running answer at
a step. Long passes, over long prompts or passages that have no stored KV, are interrupted between
two layers for a step, so that running answers go on.
"""

import math
import threading
from collections import deque
from collections.abc import Sequence

from imprag.errors import ImpRAGError
from imprag.kv_cache import PassageKVCache
from imprag.model.decoding import DecodingBatch, DecodingRow
from imprag.model.generate_arguments import own_generation_config
from imprag.model.text import text_read
from imprag.pipeline import ImpRAG
from imprag.serving.admission import Admission
from imprag.serving.interruptions import Interruptions
from imprag.serving.metrics import EngineMetrics
from imprag.serving.passages import hold_passages
from imprag.serving.prefill import prefill_requests, shares_of
from imprag.serving.requests import (
    BusyError,
    Completed,
    Ended,
    EngineRequest,
    Failed,
    FinishReason,
    OnEvent,
    Retrieved,
    TimeLimitError,
)
from imprag.serving.running import RunningAnswer, RunningRequest, Ticket, last_tokens

_PREFILL = 4  # prompts in one pass: more would let running answers wait


class _AllCancelledError(Exception):
    """All requests whose prompts are run have been cancelled."""


class Engine:
    """Answers requests with continuous batching.

    Args:
        rag: the pipeline. The KV of its passages is held in RAM from now on, behind the folder
            that it reads from (:meth:`imprag.ImpRAG.use_kv_cache`), if any.
        slots: answers that run at once.
        queue: requests that wait at most.
        time_limit: seconds that a request may take if it says nothing else; None sets no limit.
        kv_bytes: greatest size of the passage KV that is held in RAM; the least recently used
            passages leave.

    Attributes:
        metrics: for monitoring.
        retriever: gives the retriever of a name and a lexical weight; the pipeline's for two None.
        lock: held by model work outside the engine, such as embeddings, so that it runs one by one.
    """

    def __init__(
        self,
        rag: ImpRAG,
        *,
        slots: int = 16,
        queue: int = 64,
        time_limit: float | None = 300.0,
        kv_bytes: int = 2**30,
    ) -> None:
        if slots < 1 or queue < 1:
            raise ImpRAGError(f"slots and queue must be at least 1, not {slots} and {queue}")
        self.rag = rag
        self.slots = slots
        self.queue = queue
        self.lock = threading.Lock()
        self._held = hold_passages(rag, kv_bytes)
        self.metrics = EngineMetrics(self)
        self._batch = DecodingBatch(rag.model.decoder)
        self._answers: list[RunningAnswer] = []  # in the order of the batch's rows
        self._waiting: deque[RunningRequest] = deque()
        self._unfinished: set[RunningRequest] = set()  # waiting, beginning or running
        self._beginning: Sequence[RunningRequest] = ()
        self._interruptions = Interruptions(rag.model.lm.base_model.layers, self._interrupt)
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="imprag-engine", daemon=True)
        self._latency = 1.0  # seconds of a request, a moving average
        self._config = own_generation_config(rag.model.lm)
        ends = self._config.eos_token_id
        self._ends: Sequence[int] = [ends] if isinstance(ends, int) else (ends or ())
        self._admission = Admission(rag, slots, time_limit)
        self.retriever = self._admission.retriever

    @property
    def running(self) -> int:
        """Number of answers that are generated now."""
        return len(self._answers)

    @property
    def waiting(self) -> int:
        """Number of requests that wait now."""
        return len(self._waiting)

    @property
    def kv_cache(self) -> PassageKVCache:
        """Where the passage KV comes from."""
        return self.rag.kv_cache

    @property
    def kv_bytes(self) -> int:
        """Size of the passage KV that is held in RAM."""
        return 0 if self._held is None else self._held.bytes

    def start(self) -> None:
        """Start the engine's thread."""
        self._thread.start()

    def submit(self, request: EngineRequest, on_event: OnEvent) -> Ticket:
        """Queue a request.

        Args:
            request: the prompt with its settings.
            on_event: receives its events, in the engine's thread; it must not block.

        Returns:
            a ticket that cancels the request.

        Raises:
            BusyError: the queue is full, or the engine is closing.
            ImpRAGError: the prompt is empty or too long, k is larger than the index, there is no
                index, or a setting is out of its range.
        """
        run = self._admission.check(request, on_event)
        with self._changed:
            if self._closing:
                raise self._shutting_down()
            if len(self._waiting) >= self.queue:
                wait = math.ceil(self._latency * len(self._waiting) / self.slots)
                raise BusyError(
                    f"{self.queue} requests are waiting already; try again in {wait} s", wait
                )
            self._waiting.append(run)
            self._unfinished.add(run)
            self._changed.notify()
        return run.ticket

    def ask(self, request: EngineRequest) -> list[Ended]:
        """Wait for the answers to a request.

        Raises:
            ImpRAGError: as :meth:`submit`, or the request failed.
        """
        done = threading.Event()
        answers: list[Ended] = []
        failures: list[Exception] = []

        def note(event: object) -> None:
            if isinstance(event, Ended):
                answers.append(event)
            elif isinstance(event, Failed):
                failures.append(event.error)
            if isinstance(event, Failed | Completed):
                done.set()

        self.submit(request, note)
        done.wait()
        if failures:
            raise failures[0]
        return sorted(answers, key=lambda answer: answer.choice)

    def close(self, *, drain: bool = True, timeout: float | None = None) -> None:
        """Accept nothing more, and end the thread.

        Args:
            drain: let all accepted requests finish; otherwise they fail with a `BusyError`.
            timeout: seconds after which what still runs fails, too.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        if not drain:
            self._abandon()
        if not self._thread.ident:
            return
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._abandon()
            self._thread.join()

    def _abandon(self) -> None:
        with self._changed:
            for run in self._unfinished:
                run.fail(self._shutting_down())

    def _shutting_down(self) -> BusyError:
        return BusyError("the server is shutting down; try another one", self._latency)

    def _work(self) -> None:
        with self._interruptions.active():
            while True:
                with self._changed:
                    while not (self._waiting or self._answers):
                        if self._closing:
                            return
                        self._changed.wait()
                    runs = self._admit()
                if runs:
                    self._begin(runs)
                self._interruptions.undisturbed(self._step)

    def _interrupt(self) -> None:
        """In a long pass: end it if nobody waits for it, and let running answers go on.

        Raises:
            _AllCancelledError: nobody does.
        """
        if self._beginning and all(run.over for run in self._beginning):
            raise _AllCancelledError
        self._step()

    def _admit(self) -> list[RunningRequest]:
        """The requests that begin now: the oldest, as many as there are free slots."""
        for run in [run for run in self._waiting if run.over or run.late]:
            self._waiting.remove(run)
            run.fail(TimeLimitError("the request waited too long for a free place"))
            self._count(run)
        free = self.slots - len(self._answers)
        runs: list[RunningRequest] = []
        while self._waiting and len(runs) < _PREFILL and self._waiting[0].request.n <= free:
            runs.append(self._waiting.popleft())
            free -= runs[-1].request.n
        return runs

    def _begin(self, runs: Sequence[RunningRequest]) -> None:
        """Run prompts through the model, and make their first tokens."""
        for run in runs:
            run.begin()
        self._beginning = runs
        try:
            rows = prefill_requests(self.rag, runs)
        except _AllCancelledError:
            rows = []
        except Exception as error:
            if len(runs) > 1:  # one of them is to blame
                for run in runs:
                    self._begin([run])
                return
            runs[0].fail(error)
            rows = []
        finally:
            self._beginning = ()
        for run, row in zip(runs, rows, strict=False):
            try:
                self._start(run, row)
            except Exception as error:
                run.fail(error)
        for run in runs:
            self._count(run)

    def _start(self, run: RunningRequest, row: DecodingRow) -> None:
        """Report what a request reads, and make the first token of its answers."""
        tokenizer = self.rag.tokenizer
        if run.retriever is not None:
            self.metrics.retrieval.observe(run.timings["search"])
        self.metrics.prompt_tokens.inc(len(run.ids))
        run.report(Retrieved(run.found, len(run.ids), text_read(tokenizer, run.request.prompt)))
        run.answers = run.request.n
        answers = [
            RunningAnswer(run, choice, tokenizer, self._config, self._ends)
            for choice in range(run.request.n)
        ]
        for answer in answers:
            self._append(answer, answer.choose(row.logits))
        running = [answer for answer in answers if not answer.ended and not run.over]
        if running:
            self._batch.join([row] * len(running))
            self._answers += running

    def _step(self) -> None:
        """One token for every running answer; those that have ended leave."""
        try:
            self._leave()
            if self._answers:
                shares = shares_of(self.rag, (answer.run for answer in self._answers))
                logits = self._batch.step(*last_tokens(self._answers), shares)
                for n, (answer, row) in enumerate(zip(self._answers, logits, strict=True)):
                    answer.note_shares(shares, n)
                    self._append(answer, answer.choose(row))
                self._leave()
        except Exception as error:  # such as no memory: the engine goes on with what comes next
            self._drop(error)

    def _drop(self, error: Exception) -> None:
        """Fail all running answers; the next ones begin with a new batch."""
        answers, self._answers = self._answers, []
        self._batch = DecodingBatch(self.rag.model.decoder)
        for answer in answers:
            answer.run.fail(error)
            self._count(answer.run)

    def _leave(self) -> None:
        """Remove the answers that have ended, were cancelled or are late from the batch."""
        for answer in self._answers:
            if answer.run.late and not answer.ended:
                self._end(answer, "length")
        kept = [n for n, one in enumerate(self._answers) if not one.ended and not one.run.over]
        if len(kept) == len(self._answers):
            return
        for answer in self._answers:
            self._count(answer.run)
        self._answers = [self._answers[n] for n in kept]
        self._batch.keep(kept)

    def _append(self, answer: RunningAnswer, token: int) -> None:
        """Report a token of an answer, and its end."""
        run, metrics = answer.run, self.metrics
        metrics.generation_tokens.inc()
        waited = answer.note_token()
        (metrics.inter_token if answer.tokens else metrics.first_token).observe(waited)
        is_end = token in self._ends
        for event in answer.push(token, is_end=is_end):
            run.report(event)
        if is_end or answer.text.ended:
            self._end(answer, "stop")
        elif len(answer.tokens) >= run.request.max_new_tokens:
            self._end(answer, "length")

    def _end(self, answer: RunningAnswer, reason: FinishReason) -> None:
        run = answer.run
        for event in answer.end(reason):
            run.report(event)
        run.answers -= 1
        if run.answers == 0:
            run.complete()
            self._latency += 0.1 * (run.timings["total"] - self._latency)
            self.metrics.latency.observe(run.timings["total"])

    def _count(self, run: RunningRequest) -> None:
        if run.outcome and run in self._unfinished:
            with self._changed:
                self._unfinished.remove(run)
            self.metrics.requests.labels(run.outcome).inc()
