"""A LlamaIndex query engine over the retriever."""

import asyncio

import pytest

pytest.importorskip("llama_index.core", reason="needs llama-index-core")

from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine

from imprag.integrations.llama_index import ImpRAGRetriever
from imprag.pipeline import ImpRAG


def test_nodes_are_the_pipelines_passages(hybrid_rag: ImpRAG) -> None:
    retriever = ImpRAGRetriever(hybrid_rag, k=3)
    nodes = retriever.retrieve("w1 w2 w3")
    (expected,) = hybrid_rag.retrieve(["w1 w2 w3"], 3)
    assert [(node.node_id, node.text, node.score) for node in nodes] == [
        (one.passage.id, one.passage.text, one.score) for one in expected
    ]
    assert nodes[0].metadata == {**expected[0].passage.meta, "title": expected[0].passage.title}
    assert asyncio.run(retriever.aretrieve("w1 w2 w3")) == nodes


def test_a_query_engine_reads_what_was_retrieved(hybrid_rag: ImpRAG) -> None:
    engine = RetrieverQueryEngine.from_args(ImpRAGRetriever(hybrid_rag), llm=MockLLM())
    response = engine.query("w1 w2 w3")
    (expected,) = hybrid_rag.retrieve(["w1 w2 w3"])
    assert [one.node_id for one in response.source_nodes] == [one.passage.id for one in expected]
    assert all(one.passage.text in str(response) for one in expected)  # the mock repeats its prompt
