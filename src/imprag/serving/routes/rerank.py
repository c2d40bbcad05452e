"""``POST /rerank`` and ``POST /v1/rerank``."""

import uuid

import numpy as np
from fastapi import APIRouter

from imprag.corpus import Passage
from imprag.serving.errors import REFUSALS
from imprag.serving.replies import InputUsage, RankedDocument, Ranking
from imprag.serving.schema import RerankRequest
from imprag.serving.service import Served
from imprag.serving.texts import embed_passages, embed_queries

router = APIRouter(responses=REFUSALS)


@router.post("/rerank", response_model_exclude_none=True, include_in_schema=False)
@router.post("/v1/rerank", response_model_exclude_none=True)
def rerank(body: RerankRequest, service: Served) -> Ranking:
    """Rank documents by the score that the model gives them for a query."""
    service.check_model(body.model)
    documents, limit = body.passages, service.settings.max_texts
    service.check_number("the number of documents", len(documents), limit)
    service.check_text("the query", body.query)
    for number, one in enumerate(documents):
        service.check_text(f"documents[{number}]", one.text)
    with service.place():
        query, query_tokens = embed_queries(service, [body.query])
        passages = [Passage("", one.title, one.text) for one in documents]
        embedded, tokens = embed_passages(service, passages, "documents")
    scores = embedded @ query[0]
    best = np.argsort(-scores, kind="stable")[: body.top_n]
    used = query_tokens + tokens
    return Ranking(
        id=f"rerank-{uuid.uuid4().hex}",
        model=service.settings.model,
        results=[
            RankedDocument(
                index=index,
                relevance_score=float(scores[index]),
                document=None if body.return_documents is False else documents[index].model_dump(),
            )
            for index in best.tolist()
        ],
        usage=InputUsage(prompt_tokens=used, total_tokens=used),
    )
