"""Haystack pipelines, through YAML and back."""

from pathlib import Path

import pytest

pytest.importorskip("haystack", reason="needs haystack-ai")

from haystack import Pipeline
from haystack.components.builders import PromptBuilder

from imprag.errors import ImpRAGError
from imprag.integrations.haystack import ImpRAGAnswerer, ImpRAGRetriever
from imprag.pipeline import ImpRAG

QUERY = "w1 w2 w3"


def test_a_pipeline_answers_the_same_after_yaml(tiny_home: Path, hybrid_rag: ImpRAG) -> None:
    names = (tiny_home / "model", str(tiny_home / "index"))
    pipeline = Pipeline()
    pipeline.add_component("retriever", ImpRAGRetriever(*names, top_k=3, lexical_weight=2.0))
    template = "{% for one in documents %}{{ one.meta.title }} {% endfor %}{{ query }}"
    pipeline.add_component("prompt", PromptBuilder(template, required_variables=["documents"]))
    pipeline.add_component("answerer", ImpRAGAnswerer(*names, max_new_tokens=4))
    pipeline.connect("retriever.documents", "prompt.documents")
    pipeline.connect("prompt.prompt", "answerer.query")
    given = {"retriever": {"query": QUERY}, "prompt": {"query": QUERY}}
    answers = pipeline.run(given)

    read = Pipeline.loads(pipeline.dumps(), allowed_modules=["imprag.*"])
    assert read.to_dict()["components"] == pipeline.to_dict()["components"]
    assert read.run(given) == answers

    (answer,) = answers["answerer"]["answers"]
    expected = ImpRAG(hybrid_rag.model, hybrid_rag.tokenizer, hybrid_rag.index).ask(
        answer.query, max_new_tokens=4
    )
    assert answer.query.endswith(QUERY)
    assert answer.data == expected.text
    assert [one.id for one in answer.documents] == [p.passage.id for p in expected.passages]


def test_documents_are_the_pipelines_passages(hybrid_rag: ImpRAG) -> None:
    retriever = ImpRAGRetriever(hybrid_rag, top_k=3)
    documents = retriever.run(QUERY)["documents"]
    (expected,) = hybrid_rag.retrieve([QUERY], 3)
    assert [(one.id, one.content, one.score) for one in documents] == [
        (one.passage.id, one.passage.text, one.score) for one in expected
    ]
    assert documents[0].meta == {**expected[0].passage.meta, "title": expected[0].passage.title}
    assert retriever.run(QUERY, top_k=1)["documents"] == documents[:1]
    assert retriever.run(QUERY, top_k=0)["documents"] == []


def test_a_loaded_model_cannot_be_written_to_a_file(hybrid_rag: ImpRAG) -> None:
    for component in (ImpRAGRetriever(hybrid_rag), ImpRAGAnswerer(hybrid_rag)):
        with pytest.raises(ImpRAGError, match="cannot be written to a file: pass the model's name"):
            component.to_dict()
