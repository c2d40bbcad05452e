"""Checks of requests before they enter the engine."""

import math
from functools import lru_cache

from imprag.errors import ImpRAGError
from imprag.generation import GenerationSettings, Judge, later_search, passage_kv
from imprag.index.folder import IndexFolder
from imprag.model.text import prompt_tokens
from imprag.pipeline import ImpRAG, make_retriever
from imprag.retrieval.retriever import Retriever
from imprag.serving.requests import EngineRequest, OnEvent
from imprag.serving.running import RunningRequest


class Admission:
    """Turns requests into those that an engine can run.

    Args:
        rag: the pipeline.
        slots: answers that run at once.
        time_limit: seconds, for requests that give none.
    """

    def __init__(self, rag: ImpRAG, slots: int, time_limit: float | None) -> None:
        self.rag = rag
        self.slots = slots
        self.time_limit = time_limit
        self._retriever = lru_cache(maxsize=8)(self._make_retriever)

    def check(self, request: EngineRequest, on_event: OnEvent) -> RunningRequest:
        """The request with its tokens and its retriever.

        Raises:
            ImpRAGError: the prompt is empty or too long, k is larger than the index, there is no
                index, or a setting is out of its range.
        """
        self._check_settings(request)
        rag = self.rag
        retriever, k = None, 0
        if request.passages is None and request.k != 0:
            retriever = self.retriever(request.retrieval, request.lexical_weight)
            k = rag.passages_to_read(request.k)
        schedule = rag.config.schedule(
            request.retrieve, request.passages_kept, retrieves=retriever is not None
        )
        later = later_search(rag, schedule, retriever, k, lambda found: passage_kv(rag, [found]))
        shift = rag.config.position_shift(k if retriever else len(request.passages or ()))
        room = rag.model.positions_limit - shift - request.max_new_tokens
        ids = prompt_tokens(rag.tokenizer, [request.prompt], max(room, 0))[0]
        limit = self.time_limit if request.time_limit is None else request.time_limit
        judge = Judge.of(rag, request.min_confidence, attribution=request.attribution)
        return RunningRequest(request, on_event, ids, shift, retriever, k, judge, limit, later)

    def retriever(self, name: str | None, lexical_weight: float | None) -> Retriever:
        """The retriever of a request; the pipeline's if nothing is asked for.

        Raises:
            ImpRAGError: there is no such retriever, or it cannot search this index.
        """
        if name is None and lexical_weight is None:
            return self.rag.retriever
        return self._retriever(name or "hybrid", lexical_weight, self.rag.index)

    def _check_settings(self, request: EngineRequest) -> None:
        sampling = request.sampling
        least = request.min_confidence
        GenerationSettings.of(request.max_new_tokens, request.stop, {}, min_confidence=least)
        if not 1 <= request.n <= self.slots:
            raise ImpRAGError(f"n must be between 1 and {self.slots}, not {request.n}")
        if not 0 <= request.min_new_tokens <= request.max_new_tokens:
            raise ImpRAGError(
                f"min_new_tokens must be between 0 and max_new_tokens, {request.max_new_tokens}, "
                f"but is {request.min_new_tokens}"
            )
        if not 0 <= sampling.temperature < math.inf:
            raise ImpRAGError(f"temperature must not be negative, but is {sampling.temperature}")
        if not 0 < sampling.top_p <= 1:
            raise ImpRAGError(f"top_p must be above 0 and at most 1, but is {sampling.top_p}")

    def _make_retriever(
        self, name: str, lexical_weight: float | None, index: IndexFolder
    ) -> Retriever:
        """The retriever for one state of the index."""
        return make_retriever(self.rag, name, lexical_weight)
