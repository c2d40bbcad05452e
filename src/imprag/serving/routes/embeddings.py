"""``POST /v1/embeddings``."""

import base64
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from imprag.corpus import Passage
from imprag.errors import ImpRAGError
from imprag.serving.errors import REFUSALS
from imprag.serving.replies import Embeddings
from imprag.serving.schema import EmbeddingRequest
from imprag.serving.service import Served, Service
from imprag.serving.texts import FloatArray, embed_passages, embed_queries, text_of_tokens

router = APIRouter(responses=REFUSALS)


@router.post("/v1/embeddings", response_model=Embeddings)
def create_embeddings(body: EmbeddingRequest, service: Served) -> JSONResponse:
    """Embed texts: passages as an index stores them, queries as prompts retrieve with them."""
    service.check_model(body.model)
    size = service.rag.encoder.dimension
    if body.dimensions not in (None, size):
        raise ImpRAGError(f"dimensions is {body.dimensions}, but this model's are {size}")
    with service.place():
        texts = _texts(service, body.input)
        if body.input_type == "query":
            embedded, tokens = embed_queries(service, texts)
        else:
            passages = [Passage("", "", text) for text in texts]
            embedded, tokens = embed_passages(service, passages, "input")
    coded = _base64 if body.encoding_format == "base64" else _numbers
    data = [
        {"object": "embedding", "index": index, "embedding": coded(row)}
        for index, row in enumerate(embedded)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse(
        {"object": "list", "data": data, "model": service.settings.model, "usage": usage}
    )


def _texts(service: Service, given: Any) -> list[str]:
    """The texts of an input, whatever its form: a text, texts, tokens or lists of tokens."""
    if isinstance(given, str) or isinstance(given[0], int):
        given = [given]
    service.check_number("the number of texts", len(given), service.settings.max_texts)
    texts = [one if isinstance(one, str) else text_of_tokens(service, one) for one in given]
    for number, text in enumerate(texts):
        service.check_text(f"input[{number}]" if len(texts) > 1 else "the input", text)
    return texts


def _numbers(row: FloatArray) -> list[float]:
    numbers: list[float] = row.tolist()
    return numbers


def _base64(row: FloatArray) -> str:
    return base64.b64encode(row.astype("<f4").tobytes()).decode()
