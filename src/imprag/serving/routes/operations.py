"""``GET /health``, ``GET /metrics`` and the loaded model under ``/v1/models``."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from imprag.errors import ImpRAGError
from imprag.serving.errors import REFUSALS
from imprag.serving.replies import Health, Model, Models
from imprag.serving.service import Served, Service

router = APIRouter(responses={401: REFUSALS[401], 421: REFUSALS[421]})


@router.get("/health")
async def health(service: Served) -> Health:
    """Whether the server is up; needs no key."""
    return Health(running=service.engine.running, waiting=service.engine.waiting)


@router.get("/metrics", response_class=Response)
def metrics(service: Served) -> Response:
    """Metrics for Prometheus."""
    content = generate_latest(service.engine.metrics.registry)
    return Response(content, media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/models")
def list_models(service: Served) -> Models:
    """The loaded model, its settings, and the corpus that it retrieves from."""
    return Models(data=[_model(service)])


@router.get("/v1/models/{model:path}", responses={404: REFUSALS[404]})
def get_model(service: Served, model: str) -> Model:
    """The loaded model by its name."""
    service.check_model(model)
    return _model(service)


def _model(service: Service) -> Model:
    config = service.rag.config
    details = {
        "base_model": config.base_model,
        "k": config.k,
        "retrieval": service.rag.retrieval,
        "max_passage_tokens": config.max_passage_tokens,
        "corpus": _corpus(service),
    }
    return Model(id=service.settings.model, created=service.started, imprag=details)


def _corpus(service: Service) -> dict[str, str | int] | None:
    """The corpus that prompts retrieve from, if there is one."""
    try:
        corpus = service.rag.corpus
    except ImpRAGError:
        return None
    return {
        "id": service.store,
        "passages": len(corpus),
        "source": corpus.manifest["source"],
        "credit": corpus.manifest["credit"],
    }
