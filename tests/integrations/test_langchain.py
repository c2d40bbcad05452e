"""LangChain's own suite for retrievers, and what the documents hold."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langchain_tests", reason="needs langchain-tests")

from langchain_core.retrievers import BaseRetriever
from langchain_tests.integration_tests import RetrieversIntegrationTests

from imprag.errors import ImpRAGError
from imprag.integrations.langchain import ImpRAGRetriever
from imprag.pipeline import ImpRAG

pytest.mark.asyncio(RetrieversIntegrationTests.test_ainvoke_returns_documents)


class TestImpRAGRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _folders(self, tiny_home: Path) -> None:
        self._home = tiny_home

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return ImpRAGRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"model": self._home / "model", "index": self._home / "index"}

    @property
    def retriever_query_example(self) -> str:
        return "w1 w2 w3"


def test_documents_are_the_pipelines_passages(hybrid_rag: ImpRAG) -> None:
    documents = ImpRAGRetriever(model=hybrid_rag).invoke("w1 w2 w3")
    (expected,) = hybrid_rag.retrieve(["w1 w2 w3"])
    assert [(one.id, one.page_content, one.metadata) for one in documents] == [
        (
            one.passage.id,
            one.passage.text,
            {"page": one.passage.meta["page"], "title": one.passage.title, "score": one.score},
        )
        for one in expected
    ]
    assert len(documents) == hybrid_rag.config.k


def test_queries_at_once_get_their_own_documents(hybrid_rag: ImpRAG) -> None:
    retriever = ImpRAGRetriever(model=hybrid_rag, k=4)
    queries = [f"w{n} w{n + 1}" for n in range(16)]
    together = asyncio.run(retriever.abatch(queries))
    assert together == [retriever.invoke(query) for query in queries]


def test_the_retriever_is_chosen_by_name(hybrid_rag: ImpRAG) -> None:
    found = {
        name: [
            one.id
            for one in ImpRAGRetriever(model=hybrid_rag, retrieval=name, k=12).invoke("w3 w4")
        ]
        for name in ("implicit", "lexical", "hybrid")
    }
    assert len({tuple(ids) for ids in found.values()}) == 3
    heavy = ImpRAGRetriever(model=hybrid_rag, lexical_weight=1e6, k=1).invoke("w3 w4")
    assert heavy[0].id == found["lexical"][0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"retrieval": "psychic"}, "psychic"),
        ({"retrieval": "lexical", "lexical_weight": 2.0}, "lexical_weight is for hybrid"),
        ({"index": "elsewhere"}, "a loaded ImpRAG has its index"),
    ],
)
def test_a_setting_without_effect_is_refused(
    hybrid_rag: ImpRAG, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ImpRAGError, match=message):
        ImpRAGRetriever(model=hybrid_rag, **settings)


def test_bad_queries_get_a_sentence(hybrid_rag: ImpRAG) -> None:
    retriever = ImpRAGRetriever(model=hybrid_rag)
    with pytest.raises(ImpRAGError, match="the prompt is empty"):
        retriever.invoke(" ")
    with pytest.raises(ImpRAGError, match="k is 13, but the index has 12 passages"):
        retriever.invoke("w1", k=13)
    assert retriever.invoke("w1", k=0) == []
