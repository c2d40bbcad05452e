"""``GET /v1/vector_stores`` and ``POST /v1/vector_stores/{id}/search``: the loaded index."""

from fastapi import APIRouter

from imprag.retrieval import RetrievedPassage
from imprag.serving.citations import passage_url
from imprag.serving.errors import REFUSALS
from imprag.serving.replies import (
    FoundPassage,
    FoundText,
    SearchResults,
    VectorStore,
    VectorStores,
)
from imprag.serving.schema import RetrievalChoice, SearchRequest
from imprag.serving.service import Served

router = APIRouter(responses=REFUSALS)
_RESULTS = 10


@router.get("/v1/vector_stores")
def list_vector_stores(service: Served) -> VectorStores:
    """The loaded index as the only vector store."""
    corpus = service.rag.corpus
    counts = {"in_progress": 0, "failed": 0, "cancelled": 0}
    store = VectorStore(
        id=service.store,
        name=service.store,
        created_at=service.started,
        usage_bytes=sum(file["bytes"] for file in corpus.manifest["files"].values()),
        file_counts={**counts, "completed": len(corpus), "total": len(corpus)},
        metadata={"source": corpus.manifest["source"], "credit": corpus.manifest["credit"]},
    )
    return VectorStores(data=[store], first_id=store.id, last_id=store.id)


@router.post("/v1/vector_stores/{store}/search")
def search_vector_store(store: str, body: SearchRequest, service: Served) -> SearchResults:
    """The passages that prompts retrieve, best first; of several queries, their best ones."""
    service.check_store(store)
    queries = body.queries
    service.check_number("the number of queries", len(queries), service.settings.max_prompts)
    for number, query in enumerate(queries):
        service.check_text(f"query[{number}]" if len(queries) > 1 else "the query", query)
    choice = body.imprag or RetrievalChoice()
    if choice.retrieval is not None:
        service.check_retrieval(choice.retrieval)
    limit = min(body.max_num_results or _RESULTS, len(service.rag.corpus))
    with service.place():
        retriever = service.engine.retriever(choice.retrieval, choice.lexical_weight)
        with service.lock:
            found = retriever.retrieve(service.rag.asked_prompts(queries), limit)
    return SearchResults(search_query=queries, data=_best(found, limit))


def _best(found: list[list[RetrievedPassage]], limit: int) -> list[FoundPassage]:
    """The best passages of all queries, each once."""
    by_id: dict[str, RetrievedPassage] = {}
    for one in sorted((one for row in found for one in row), key=lambda one: -one.score):
        by_id.setdefault(one.passage.id, one)
    return [
        FoundPassage(
            file_id=one.passage.id,
            filename=one.passage.title,
            score=one.score,
            attributes={"url": passage_url(one.passage), "kind": one.kind},
            content=[FoundText(text=one.passage.text)],
        )
        for one in list(by_id.values())[:limit]
    ]
