"""Generation for a batch of prompts: retrieval, passage KV, streaming, timings."""

import threading
import time
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList, TextIteratorStreamer

from imprag.errors import ImpRAGError
from imprag.generation.answer import Answer, Judge
from imprag.generation.reading import later_search, passage_kv
from imprag.generation.settings import GenerationSettings
from imprag.generation.stops import StopAt, StopWhen, until_stop
from imprag.model.attribution import ReadingShares
from imprag.model.confidence import TokenProbabilities
from imprag.model.generate import fixed
from imprag.model.kv import PassageKV
from imprag.model.query import Queries
from imprag.model.schedule import RetrievalSchedule
from imprag.model.text import prompt_batch, text_read
from imprag.retrieval.again import AnswerRetrievals
from imprag.retrieval.retriever import InPassRetriever, PromptBatch, RetrievedPassage

if TYPE_CHECKING:
    from imprag.pipeline import ImpRAG


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
        searches = None if k == 0 or not schedule.again else rag.retriever
        count = 0 if searches is None else self.k or rag.passages_to_read(k)
        self._later = later_search(rag, schedule, searches, count, self._encode_one)
        start = time.perf_counter()
        if self.k and not isinstance(rag.retriever, InPassRetriever):
            passages, self.k = rag.retriever.retrieve(prompts, self.k), 0
        searched = time.perf_counter() - start
        self.found = [[] for _ in prompts] if passages is None else [list(p) for p in passages]
        self.timings = dict.fromkeys(("query", "search", "encode", "generate", "total"), 0.0)
        self.timings["search"] = searched
        self.retrieves = self.k > 0
        later = 0 if self._later is None else self._later.k
        counts = [self.k if self.retrieves else max(len(row), later) for row in self.found]
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
            ends.append(StopAt(self.settings.stop, self.rag.tokenizer, self.input_ids.shape[1]))
        if left is not None:
            ends.append(StopWhen(left))
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
            **self.judge(tokens, text, read, shares, probabilities),
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
        kv = passage_kv(self.rag, found)
        self.hits += cache.hits - hits
        self.misses += cache.misses - misses
        self._lap("encode")
        return kv

    def _lap(self, name: str) -> None:
        now = time.perf_counter()
        self.timings[name] += now - self._last
        self._last = now
