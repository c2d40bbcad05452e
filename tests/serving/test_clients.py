"""The official clients, unmodified, against a server on this machine."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openai", reason="the client's package")

import openai
from tiny_api import MESSAGES, PROMPT, asking_rag, running, tiny_app
from tiny_server import PASSAGES

from imprag.pipeline import ImpRAG

KEY = "sk-tiny"


@pytest.fixture(scope="module")
def rag(tmp_path_factory: pytest.TempPathFactory) -> ImpRAG:
    return asking_rag(tmp_path_factory.mktemp("clients"))


@pytest.fixture(scope="module")
def url(rag: ImpRAG) -> Iterator[str]:
    with running(tiny_app(rag, api_key=KEY)) as address:
        yield f"{address}/v1"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def expected(rag: ImpRAG) -> str:
    return rag.ask(PROMPT, max_new_tokens=6).text


def test_openai_chat(client: openai.OpenAI, rag: ImpRAG, expected: str) -> None:
    reply = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=6)
    message = reply.choices[0].message
    assert message.content == expected
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 6
    found = rag.retrieve([PROMPT])[0]
    assert message.annotations is not None
    cited = [one.url_citation for one in message.annotations]
    assert [one.title for one in cited] == [one.passage.title for one in found]
    assert {(one.start_index, one.end_index) for one in cited} == {(0, len(expected))}
    extra = (reply.model_extra or {})["imprag"]
    assert [one["id"] for one in extra["passages"]] == [one.passage.id for one in found]
    # The answer may be sent back as it came, in a longer conversation.
    longer: list[Any] = [*MESSAGES, message, {"role": "user", "content": "w7"}]
    again = client.chat.completions.create(model="tiny", messages=longer, max_tokens=2)
    read = (again.model_extra or {})["imprag"]["model_prompts"]
    assert read == [f"{PROMPT} {expected} w7"]


def test_openai_chat_stream(client: openai.OpenAI, expected: str) -> None:
    stream = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_completion_tokens=6,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    assert "".join(delta.content or "" for delta in deltas).strip() == expected
    assert deltas[0].role == "assistant"
    assert len((deltas[-1].model_extra or {})["annotations"]) == 3
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 6
    assert len((chunks[0].model_extra or {})["imprag"]["passages"]) == 3


def test_openai_completions(client: openai.OpenAI, rag: ImpRAG) -> None:
    reply = client.completions.create(model="tiny", prompt=["w5", "w6 w7"], max_tokens=4)
    answers = rag.generate(["w5", "w6 w7"], max_new_tokens=4, raw=True)
    assert [choice.text for choice in reply.choices] == [answer.text for answer in answers]
    stream = client.completions.create(model="tiny", prompt="w5", max_tokens=4, stream=True)
    streamed = "".join(chunk.choices[0].text for chunk in stream)
    assert streamed.strip() == answers[0].text


def test_openai_embeddings_in_both_formats(client: openai.OpenAI, rag: ImpRAG) -> None:
    texts = ["w1 w2", "w40"]
    given = client.embeddings.create(model="tiny", input=texts)  # asks for base64
    floats = client.embeddings.create(model="tiny", input=texts, encoding_format="float")
    assert [one.embedding for one in given.data] == [one.embedding for one in floats.data]
    assert given.usage.prompt_tokens == 3
    query = client.embeddings.create(
        model="tiny", input=rag.tokenizer.encode(PROMPT), extra_body={"input_type": "query"}
    )
    passages = rag.encoder(PASSAGES)
    scores = passages @ np.array(query.data[0].embedding, np.float32)
    found = rag.retrieve([PROMPT], 3)[0]
    assert [PASSAGES[n].id for n in np.argsort(-scores)[:3]] == [one.passage.id for one in found]
    np.testing.assert_allclose(np.sort(scores)[::-1][:3], [one.score for one in found], rtol=0.02)


def test_openai_vector_store_search(client: openai.OpenAI, rag: ImpRAG) -> None:
    (store,) = client.vector_stores.list()
    assert store.file_counts.completed == len(PASSAGES)
    results = client.vector_stores.search(store.id, query=PROMPT, max_num_results=4)
    found = rag.retrieve([PROMPT], 4)[0]
    assert [one.file_id for one in results] == [one.passage.id for one in found]
    assert [one.score for one in results] == [one.score for one in found]
    assert results.data[0].content[0].text == found[0].passage.text


def test_openai_errors_have_their_classes(client: openai.OpenAI, url: str) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-9' here"):
        client.chat.completions.create(model="gpt-9", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="allows 1024"):
        client.completions.create(model="tiny", prompt="w1", max_tokens=5000, stream=True)
    with (
        openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError, match="the API key is missing or wrong"),
    ):
        stranger.models.list()


def test_langchain(url: str, expected: str, rag: ImpRAG) -> None:
    pytest.importorskip("langchain_openai", reason="the client's package")
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    settings: dict[str, Any] = {"model": "tiny", "base_url": url, "api_key": KEY}
    chat = ChatOpenAI(max_tokens=6, **settings)
    assert chat.invoke(PROMPT).content == expected
    streamed = list(chat.stream(PROMPT))
    assert "".join(str(chunk.content) for chunk in streamed).strip() == expected
    # Without this option, the client would send tokens of OpenAI's models.
    embeddings = OpenAIEmbeddings(check_embedding_ctx_length=False, **settings)
    texts = [passage.text for passage in PASSAGES[:2]]
    assert len(embeddings.embed_documents(texts)[1]) == rag.encoder.dimension


@pytest.mark.parametrize("is_chat_model", [True, False])
def test_llama_index(url: str, rag: ImpRAG, expected: str, is_chat_model: bool) -> None:
    pytest.importorskip("llama_index.llms.openai_like", reason="the client's package")
    from llama_index.core.base.llms.types import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    llm = OpenAILike(
        model="tiny",
        api_base=url,
        api_key=KEY,
        is_chat_model=is_chat_model,
        temperature=0,
        max_tokens=6,
    )
    if is_chat_model:
        assert llm.chat([ChatMessage(role="user", content=PROMPT)]).message.content == expected
        assert llm.complete(PROMPT).text == expected
    else:
        expected = rag.ask(PROMPT, max_new_tokens=6, raw=True).text
        assert llm.complete(PROMPT).text == expected
    assert list(llm.stream_complete(PROMPT))[-1].text.strip() == expected


def test_haystack(url: str, expected: str) -> None:
    pytest.importorskip("haystack", reason="the client's package")
    from haystack.components.generators.chat import OpenAIChatGenerator
    from haystack.dataclasses import ChatMessage
    from haystack.utils import Secret

    pieces: list[str] = []
    for callback in (None, lambda chunk: pieces.append(chunk.content)):
        generator = OpenAIChatGenerator(
            model="tiny",
            api_base_url=url,
            api_key=Secret.from_token(KEY),
            generation_kwargs={"max_tokens": 6},
            streaming_callback=callback,
        )
        (reply,) = generator.run([ChatMessage.from_user(PROMPT)])["replies"]
        assert (reply.text or "").strip() == expected
    assert "".join(pieces).strip() == expected
