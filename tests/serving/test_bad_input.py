"""What is wrong with a request is said in one sentence, with the right status."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tiny_api import MESSAGES, asking_rag, tiny_app

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
EMBEDDINGS, RERANK = "/v1/embeddings", "/v1/rerank"
SEARCH = "/v1/vector_stores/index/search"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    rag = asking_rag(tmp_path_factory.mktemp("bad-input"))
    limits: dict[str, Any] = {
        "max_body_bytes": 20_000,
        "max_prompt_characters": 10_000,
        "max_tokens": 64,
        "max_n": 4,
        "max_texts": 8,
        "max_passages": 7,
        "max_prompts": 2,
    }
    app = tiny_app(rag, **limits)
    with TestClient(app, raise_server_exceptions=False) as made:
        yield made
        # The server goes on, and nothing is left behind.
        answer = made.post(COMPLETION, json={"prompt": "w1", "max_tokens": 2})
        assert answer.status_code == 200
    engine = app.state.service.engine
    assert (engine.running, engine.waiting) == (0, 0)


def chat(**fields: Any) -> bytes:
    return json.dumps({"messages": MESSAGES, **fields}).encode()


def said(*contents: Any) -> bytes:
    return chat(messages=[{"role": "user", "content": content} for content in contents])


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
LONG = "w1 " * 1200
LONG_PASSAGE = "w1 " * 30

CASES: list[tuple[str, bytes, int, str]] = [
    # The body
    (CHAT, b"{", 400, "the body is not valid JSON at character 2: "),
    (CHAT, b'{"a": "\xff"}', 400, "the body is not valid JSON in UTF-8"),
    (CHAT, b"[" * 10_000, 400, "the body is not valid JSON in UTF-8"),
    (CHAT, b'{"n": 1' + b"0" * 9000 + b"}", 400, "the body is not valid JSON in UTF-8"),
    (CHAT, b"", 422, "the body is missing"),
    (CHAT, b"[]", 422, "the body must be a JSON object"),
    (CHAT, b" " * 20_001, 413, "the body is larger than 20,000 bytes; send several requests"),
    # Fields
    (CHAT, chat(logit_bias={}), 422, "there is no field 'logit_bias'; leave it out"),
    (CHAT, b'{"\\ud800": 1, "messages": []}', 422, "valid Unicode"),
    (CHAT, b"{}", 422, "the field 'messages' is missing"),
    (CHAT, chat(imprag={"top_k": 3}), 422, "there is no field 'imprag.top_k'; leave it out"),
    (CHAT, chat(tools=[{"type": "function"}]), 422, "tools has no counterpart here: leave it out"),
    (CHAT, chat(temperature="0"), 422, "temperature must be a valid number"),
    (CHAT, chat(temperature=3), 422, "temperature must be less than or equal to 2"),
    (CHAT, chat(temperature=float("nan")), 422, "temperature must be a finite number"),
    (CHAT, chat(max_tokens=2.0), 422, "max_tokens must be a valid integer"),
    (CHAT, chat(max_tokens=0), 422, "max_tokens must be greater than or equal to 1"),
    (CHAT, chat(top_p=0), 422, "top_p must be greater than 0"),
    (CHAT, chat(seed=2**64), 422, "seed must be less than"),
    (CHAT, chat(stop=[""]), 422, "stop must"),
    (
        CHAT,
        chat(stop=["w1", "w" * 257]),
        422,
        "stop must be a valid string, or must have at most 256 characters",
    ),
    (CHAT, chat(stop=5), 422, "stop must be a valid string, or must be a valid list"),
    (CHAT, chat(stream="yes"), 422, "stream must be a valid boolean"),
    (COMPLETION, body(prompt=[1, 2]), 422, "prompt must be a valid string"),
    (EMBEDDINGS, body(input=[]), 422, "input must"),
    (EMBEDDINGS, body(input="w1", encoding_format="hex"), 422, "encoding_format must be 'float'"),
    (RERANK, body(query="w1", documents=[3]), 422, "documents[0] must be"),
    (SEARCH, body(query="w1", max_num_results=51), 422, "max_num_results must be less than"),
    (SEARCH, body(query="w1", filters={"key": "a"}), 422, "filters must be None"),
    # Messages
    (CHAT, chat(messages=[]), 422, "messages must have at least 1 item"),
    (CHAT, said(" "), 400, "messages[0] is empty; leave it out or write its text"),
    (CHAT, said([{"type": "text", "text": ""}]), 400, "messages[0] is empty"),
    (CHAT, said([IMAGE]), 422, "messages[0].content has a part of type 'image_url', but only text"),
    (CHAT, said(None), 422, "messages[0].content must be a valid string"),
    (CHAT, chat(messages=[{"role": "tool", "content": "w1"}]), 422, "messages[0].role must be"),
    (
        CHAT,
        chat(messages=[*MESSAGES, {"role": "assistant", "content": "w1"}]),
        400,
        "the last message must be the user's",
    ),
    (CHAT, b'{"messages": [{"role": "user", "content": "\\ud83d"}]}', 400, "not valid Unicode"),
    # What cannot be answered
    (CHAT, chat(model="gpt-9"), 404, "there is no model 'gpt-9' here; the loaded one is 'tiny'"),
    (CHAT, said(LONG), 400, "the prompt has 1201 tokens, but only"),
    (CHAT, said("w" * 10_001), 400, "has 10,001 characters, but this server reads 10,000"),
    (CHAT, chat(imprag={"k": 13}), 400, "imprag.k is 13, but the index has 12 passages; lower it"),
    (CHAT, chat(imprag={"k": 10**30}), 400, "but the index has 12 passages; lower it"),
    (CHAT, chat(imprag={"retrieval": "bm25"}), 400, "this server retrieves by implicit, hybrid"),
    (CHAT, chat(imprag={"retrieval": "dense"}), 400, "this server retrieves by implicit, hybrid"),
    (SEARCH, body(query="w1", imprag={"retrieval": "dense"}), 400, "this server retrieves by"),
    (CHAT, chat(imprag={"retrieval": "implicit", "lexical_weight": 1}), 400, "lexical_weight is"),
    (CHAT, chat(max_tokens=65), 400, "max_tokens is 65, but this server allows 64; ask for less"),
    (CHAT, chat(max_tokens=3, max_completion_tokens=4), 400, "they mean the same, send one"),
    (CHAT, chat(n=5), 400, "n is 5, but this server allows 4; ask for less"),
    (CHAT, chat(stream_options={"include_usage": True}), 400, "no effect without stream"),
    (CHAT, chat(documents=[{"text": " "}]), 400, "documents[0].text is empty"),
    (CHAT, chat(documents=[{"text": LONG_PASSAGE}]), 400, "documents[0] has 14 tokens more than"),
    (CHAT, chat(documents=[{"text": "w1"}] * 8), 400, "number of documents is 8, but this server"),
    (CHAT, chat(imprag={"k": 8}), 400, "imprag.k is 8, but this server allows 7; ask for less"),
    (CHAT, chat(documents=[], imprag={"k": 2}), 400, "leave imprag.k out"),
    (COMPLETION, body(prompt=["w1"] * 3), 400, "the number of prompts is 3, but this server"),
    (COMPLETION, body(prompt=["w1", "\t"]), 400, "prompt[1] is empty"),
    (EMBEDDINGS, body(input=["w1"] * 9), 400, "the number of texts is 9, but this server allows 8"),
    (EMBEDDINGS, body(input=[97]), 400, "the input has the token 97, but this model's are 0 to 96"),
    (EMBEDDINGS, body(input=["w1", ""]), 422, "input must"),
    (EMBEDDINGS, body(input=LONG_PASSAGE), 400, "input[0] has 14 tokens more than the 16"),
    (EMBEDDINGS, body(input="w1", dimensions=8), 400, "dimensions is 8, but this model's are 32"),
    (RERANK, body(query=" ", documents=["w1"]), 400, "the query is empty"),
    (RERANK, body(query="w1", documents=["w1", LONG_PASSAGE]), 400, "documents[1] has 14 tokens"),
    ("/v1/vector_stores/other/search", body(query="w1"), 404, "there is no vector store 'other'"),
    (SEARCH, body(query="w1", imprag={"lexical_weight": -1}), 422, "imprag.lexical_weight must be"),
]


STREAMED = [case for case in CASES if case[1].startswith(b'{"m') and b'"stream' not in case[1]]


@pytest.mark.parametrize(
    ("path", "content", "status", "message", "stream"),
    [*((*case, False) for case in CASES), *((*case, True) for case in STREAMED if case[0] == CHAT)],
)
def test_bad_input_is_refused(
    client: TestClient, path: str, content: bytes, status: int, message: str, stream: bool
) -> None:
    if stream:
        content = content[:-1] + b', "stream": true}'
    reply = client.post(path, content=content, headers={"Content-Type": "application/json"})
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert message in error["message"]
    assert "\n" not in error["message"]
    assert error.keys() == {"message", "type", "param", "code"}


def test_other_paths_and_methods_are_refused_in_the_same_form(client: TestClient) -> None:
    lost = client.get("/v1/nothing")
    assert lost.status_code == 404
    assert lost.json()["error"]["message"] == (
        "there is no GET /v1/nothing here; /docs lists what there is"
    )
    wrong = client.get(CHAT)
    assert (wrong.status_code, wrong.headers["Allow"]) == (405, "POST")
    assert wrong.json()["error"]["message"] == f"{CHAT} does not take GET; use POST"
    assert client.post("/v1/completions/", json={}).status_code == 404
    assert client.put("/health", content=b"x").status_code == 405


def test_only_json_is_read(client: TestClient) -> None:
    reply = client.post(CHAT, content=chat(), headers={"Content-Type": "text/plain"})
    assert reply.status_code == 415
    assert "Content-Type: application/json" in reply.json()["error"]["message"]


def test_a_body_of_unknown_length_is_read_up_to_the_limit(client: TestClient) -> None:
    parts = iter([b" " * 5000] * 7)
    reply = client.post(CHAT, content=parts, headers={"Content-Type": "application/json"})
    assert reply.status_code == 413
