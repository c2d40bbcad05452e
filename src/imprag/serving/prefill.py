"""The pass of new requests' prompts through the model, with retrieval and reading inside it."""

from collections.abc import Iterable, Sequence

import torch

from imprag.generation import passage_kv
from imprag.model.attribution import ReadingShares
from imprag.model.decoding import DecodingRow, prefill
from imprag.model.generate import PromptTokens
from imprag.model.inputs import pad
from imprag.model.kv import RowKV
from imprag.model.query import Queries
from imprag.pipeline import ImpRAG
from imprag.retrieval.again import search
from imprag.retrieval.retriever import PromptBatch, RetrievedPassage
from imprag.serving.running import RunningRequest


@torch.inference_mode()
def prefill_requests(rag: ImpRAG, runs: Sequence[RunningRequest]) -> list[DecodingRow]:
    """Run the prompts of requests through the model in one batch.

    Args:
        rag: the pipeline.
        runs: the requests, which note their passages and timings.
    """
    token = rag.tokenizer.pad_token_id or 0
    ids, mask = pad([run.ids for run in runs], rag.model.device, left=True, token=token)

    def retrieve(queries: Queries) -> RowKV:
        lap("query")
        for run, row, own in zip(runs, ids[:, None], queries.split(), strict=True):
            run.found = _search(run, PromptBatch([run.request.prompt], row), own)
        lap("search")
        kv = RowKV([passage_kv(rag, [run.found]) for run in runs])
        lap("encode")
        return kv

    def lap(name: str) -> None:
        for run in runs:
            run.lap(name)

    shift = torch.tensor([run.shift for run in runs], device=rag.model.device)
    shares = shares_of(rag, runs)
    rows = prefill(rag.model.decoder, retrieve, PromptTokens(ids, mask, shift), shares)
    if shares is not None:
        for n, run in enumerate(runs):
            run.shares = shares.of_row(n)
    return rows


def shares_of(rag: ImpRAG, runs: Iterable[RunningRequest]) -> ReadingShares | None:
    """What sums up the reading of requests in a pass; None if none asks for it."""
    asked = any(run.request.is_judged for run in runs)
    return ReadingShares(rag.model.decoder) if asked else None


def _search(run: RunningRequest, prompt: PromptBatch, queries: Queries) -> list[RetrievedPassage]:
    """The passages that a request reads."""
    if run.retriever is None:
        return list(run.request.passages or ())
    return search(run.retriever, prompt, queries, run.k)[0]
