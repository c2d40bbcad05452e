"""What the routes answer."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from tiny_api import MESSAGES, PROMPT, asking_rag, tiny_app
from tiny_server import PASSAGES, tiny_rag

from imprag.corpus import Passage
from imprag.index.remote import ServerError
from imprag.pipeline import ImpRAG
from imprag.retrieval import RetrievedPassage
from imprag.serving.citations import passage_url
from imprag.serving.prompts import INSTRUCTIONS_NOTE

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def rag(tmp_path_factory: pytest.TempPathFactory) -> ImpRAG:
    return asking_rag(tmp_path_factory.mktemp("api"))


@pytest.fixture(scope="module")
def client(rag: ImpRAG) -> Iterator[TestClient]:
    with TestClient(tiny_app(rag)) as made:
        yield made


def post(client: TestClient, path: str, **body: Any) -> dict[str, Any]:
    reply = client.post(path, json=body)
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def chunks(client: TestClient, path: str, **body: Any) -> list[dict[str, Any]]:
    reply = client.post(path, json={**body, "stream": True})
    assert reply.headers["Content-Type"].startswith("text/event-stream")
    events = reply.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


def test_defaults_are_those_of_ask(client: TestClient, rag: ImpRAG) -> None:
    reply = post(client, CHAT, messages=MESSAGES)
    answer = rag.ask(PROMPT)
    assert reply["choices"][0]["message"]["content"] == answer.text
    assert reply["imprag"]["model_prompts"] == [answer.model_prompt] == [f"w90 {PROMPT}"]
    passages = reply["imprag"]["passages"]
    expected = [(one.passage.id, one.score, one.kind) for one in answer.passages]
    assert [(one["id"], one["score"], one["kind"]) for one in passages] == expected
    assert set(reply["imprag"]["timings"][0]) >= {"queue", "first_token", "total"}
    raw = post(client, COMPLETION, prompt=PROMPT)
    assert raw["choices"][0]["text"] == rag.ask(PROMPT, raw=True).text
    assert raw["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 32,
        "total_tokens": 35,
    }


def test_a_stop_string_replaces_the_line_end(client: TestClient, rag: ImpRAG) -> None:
    whole = rag.ask(PROMPT, stop=None).text
    third = whole.split()[2]
    for stop in (third, ["w999", third]):
        choice = post(client, CHAT, messages=MESSAGES, stop=stop)["choices"][0]
        assert choice["finish_reason"] == "stop"
        assert choice["message"]["content"] == whole.partition(third)[0].strip()
    assert (
        post(client, CHAT, messages=MESSAGES, stop=[])["choices"][0]["message"]
        == (post(client, CHAT, messages=MESSAGES, stop="w999")["choices"][0]["message"])
    )


def test_several_turns_are_one_dialogue(client: TestClient, rag: ImpRAG) -> None:
    turns = [
        {"role": "system", "content": "w70 w71"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "w1"}, {"type": "text", "text": "w2"}],
        },
        {"role": "assistant", "content": " w3 "},
        {"role": "user", "content": "w4 w5"},
    ]
    reply = post(client, CHAT, messages=turns, max_tokens=4)
    assert reply["imprag"]["model_prompts"] == ["w1\nw2 w3 w4 w5"]
    assert reply["imprag"]["notes"] == [INSTRUCTIONS_NOTE]
    answer = rag.ask("w1\nw2 w3 w4 w5", raw=True, max_new_tokens=4)
    assert reply["choices"][0]["message"]["content"] == answer.text
    alone = post(client, CHAT, messages=[turns[0], turns[3]], max_tokens=1)
    assert alone["imprag"]["model_prompts"] == ["w90 w4 w5"]
    assert post(client, CHAT, messages=MESSAGES, max_tokens=1)["imprag"]["notes"] == []


def test_own_documents_are_read_in_place_of_the_corpus(client: TestClient, rag: ImpRAG) -> None:
    documents = [{"title": "w8", "text": "w9 w10"}, {"text": "w11"}]
    reply = post(client, CHAT, messages=MESSAGES, documents=documents, max_tokens=5)
    given = [
        RetrievedPassage(Passage("a", "w8", "w9 w10"), 0.0),
        RetrievedPassage(Passage("b", "", "w11"), 0.0),
    ]
    answer = rag.ask(PROMPT, passages=given, max_new_tokens=5)
    assert reply["choices"][0]["message"]["content"] == answer.text
    passages = reply["imprag"]["passages"]
    assert [(one["id"], one["title"], one["text"], one["kind"]) for one in passages] == [
        ("documents/0", "w8", "w9 w10", "given"),
        ("documents/1", "", "w11", "given"),
    ]
    nothing = post(client, CHAT, messages=MESSAGES, documents=[], max_tokens=5)
    assert nothing["imprag"]["passages"] == []
    assert nothing["choices"][0]["message"]["annotations"] == []


def test_k_and_retrieval_are_chosen_by_the_request(client: TestClient, rag: ImpRAG) -> None:
    for k in (0, 1, 12):
        reply = post(client, COMPLETION, prompt="w1", max_tokens=2, imprag={"k": k})
        assert len(reply["imprag"]["passages"]) == k
    for options in (
        {"retrieval": "lexical"},
        {"retrieval": "hybrid"},
        {"retrieval": "hybrid", "lexical_weight": 9},
    ):
        reply = post(client, COMPLETION, prompt="w84 w85", max_tokens=1, imprag=options)
        search = {"query": "w84 w85", "max_num_results": 3, "imprag": options}
        found = post(client, "/v1/vector_stores/index/search", **search)["data"]
        assert {one["kind"] for one in reply["imprag"]["passages"]} == {options["retrieval"]}
        assert {one["attributes"]["kind"] for one in found} == {options["retrieval"]}


def test_samples_are_repeatable_and_differ(client: TestClient) -> None:
    body = {"prompt": "w1", "max_tokens": 12, "temperature": 1.5, "seed": 7, "n": 3}
    first, again = (post(client, COMPLETION, **body)["choices"] for _ in range(2))
    assert first == again
    assert [one["index"] for one in first] == [0, 1, 2]
    assert len({one["text"] for one in first}) == 3
    assert post(client, COMPLETION, **{**body, "seed": 8})["choices"] != first


@pytest.mark.parametrize("temperature", [0, 1e-6, 1e-300])
def test_the_coldest_samples_are_greedy(
    client: TestClient, rag: ImpRAG, temperature: float
) -> None:
    reply = post(client, CHAT, messages=MESSAGES, temperature=temperature, max_tokens=6)
    assert reply["choices"][0]["message"]["content"] == rag.ask(PROMPT, max_new_tokens=6).text


@pytest.mark.parametrize("n", [1, 2])
def test_a_stream_adds_up_to_the_answer(client: TestClient, n: int) -> None:
    prompts = ["w5 w6", "w7"]
    body: dict[str, Any] = {"prompt": prompts, "max_tokens": 5, "n": n}
    whole = post(client, COMPLETION, **body)
    streamed = chunks(client, COMPLETION, **body, stream_options={"include_usage": True})
    assert len({chunk["id"] for chunk in streamed}) == 1
    *parts, usage = streamed
    assert usage["choices"] == []
    assert usage["usage"] == whole["usage"]
    assert all(part["usage"] is None and len(part["choices"]) == 1 for part in parts)
    for choice in whole["choices"]:
        own = [one["choices"][0] for one in parts if one["choices"][0]["index"] == choice["index"]]
        assert "".join(one["text"] for one in own).strip() == choice["text"]
        reasons = [one["finish_reason"] for one in own]
        assert reasons == [None] * (len(own) - 1) + [choice["finish_reason"]]
    passages = [one for part in parts for one in part.get("imprag", {}).get("passages", ())]
    by_prompt = sorted((one["prompt"], -one["score"], one["id"]) for one in passages)
    expected = [(one["prompt"], -one["score"], one["id"]) for one in whole["imprag"]["passages"]]
    assert np.allclose([one[:2] for one in by_prompt], [one[:2] for one in expected], atol=1e-4)
    assert [one[2] for one in by_prompt] == [one[2] for one in expected]
    timings = [one for part in parts for one in part.get("imprag", {}).get("timings", ())]
    assert len(timings) == len(prompts)
    assert "usage" not in chunks(client, COMPLETION, **body)[-1]


def test_attributions_come_with_the_answers_if_asked_for(client: TestClient, rag: ImpRAG) -> None:
    body: dict[str, Any] = {"max_tokens": 6, "imprag": {"attribution": True, "k": 4}}
    reply = post(client, CHAT, messages=MESSAGES, **body)
    answer = rag.ask(PROMPT, 4, max_new_tokens=6, attribution=True)
    assert answer.attribution is not None
    (found,) = reply["imprag"]["attributions"]
    assert found["index"] == 0
    assert found["carried_by"] == answer.attribution.carried_by
    assert np.allclose(found["shares"], answer.attribution.shares, atol=1e-5)
    assert found["own"] == pytest.approx(answer.attribution.own, abs=1e-5)
    assert [(one["text"], one["start"], one["end"]) for one in found["tokens"]] == [
        (one.text, one.start, one.end) for one in answer.attribution.tokens
    ]
    message = reply["choices"][0]["message"]
    cited = [one["url_citation"] for one in message["annotations"]]
    assert [cited[0]["start_index"], cited[-1]["end_index"]] == [0, len(message["content"])]
    for citation in cited:  # each stands for the tokens that read its passage most
        number = next(
            n
            for n, one in enumerate(reply["imprag"]["passages"])
            if (one["url"], one["title"]) == (citation["url"], citation["title"])
        )
        for token in found["tokens"]:
            if citation["start_index"] <= token["start"] < citation["end_index"]:
                rivals = [token["shares"][n] for n in found["carried_by"]]
                assert token["shares"][number] == max(rivals)
    streamed = chunks(client, CHAT, messages=MESSAGES, **body)
    last = streamed[-1]["choices"][0]
    assert last["delta"]["annotations"] == message["annotations"]
    assert streamed[-1]["imprag"]["attributions"] == reply["imprag"]["attributions"]


def test_each_of_several_answers_has_its_attribution(client: TestClient) -> None:
    body: dict[str, Any] = {"prompt": ["w5 w6", "w7"], "max_tokens": 5, "n": 2}
    options = {"imprag": {"attribution": True}, "temperature": 1.5, "seed": 1}
    reply = post(client, COMPLETION, **body, **options)
    found = reply["imprag"]["attributions"]
    assert [one["index"] for one in found] == [0, 1, 2, 3]
    for choice, one in zip(reply["choices"], found, strict=True):
        assert "".join(token["text"] for token in one["tokens"]) == choice["text"]
        assert sum(one["shares"]) + one["own"] == pytest.approx(1)
    assert post(client, COMPLETION, **body)["imprag"]["attributions"] == []
    streamed = chunks(client, COMPLETION, **body, **options)
    parts = [one.get("imprag", {}).get("attributions", ()) for one in streamed]
    assert sorted(one["index"] for part in parts for one in part) == [0, 1, 2, 3]


def test_citations_come_with_the_last_delta(client: TestClient) -> None:
    whole = post(client, CHAT, messages=MESSAGES, max_tokens=4)
    streamed = chunks(client, CHAT, messages=MESSAGES, max_tokens=4)
    first, last = streamed[0]["choices"][0], streamed[-1]["choices"][0]
    assert first["delta"] == {"role": "assistant", "content": ""}
    assert last["delta"]["annotations"] == whole["choices"][0]["message"]["annotations"]
    assert last["finish_reason"] == "length"
    assert streamed[0]["object"] == "chat.completion.chunk"
    assert streamed[0]["imprag"]["passages"] == whole["imprag"]["passages"]


def test_an_answer_may_retrieve_again(client: TestClient, rag: ImpRAG) -> None:
    own: dict[str, Any] = {"retrieve": "every:3", "passages_kept": "instead"}
    answer = rag.ask(PROMPT, max_new_tokens=8, **own)
    later = [
        (one.tokens, one.written, [found.passage.id for found in one.passages])
        for one in answer.retrievals[1:]
    ]
    assert later
    body: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 8, "imprag": own}
    reply = post(client, CHAT, **body)
    message = reply["choices"][0]["message"]
    assert message["content"] == answer.text
    cited = [one["url_citation"]["title"] for one in message["annotations"]]
    assert cited == [found.passage.title for found in answer.passages]
    *_, last = chunks(client, CHAT, **body)
    assert last["choices"][0]["delta"]["annotations"] == message["annotations"]
    for given in (reply, last):
        told = given["imprag"]["retrievals"]
        assert later == [
            (one["tokens"], one["written"], [found["id"] for found in one["passages"]])
            for one in told
        ]
        assert {(one["prompt"], one["choice"]) for one in told} == {(0, 0)}
    assert post(client, CHAT, messages=MESSAGES)["imprag"]["retrievals"] == []
    for own in ({"retrieve": "now"}, {"passages_kept": "beside"}, {"retrieve": "every:2", "k": 0}):
        assert client.post(CHAT, json={**body, "imprag": own}).status_code == 400


def test_attributions_of_an_answer_that_retrieves_again(client: TestClient, rag: ImpRAG) -> None:
    own: dict[str, Any] = {"retrieve": "every:2", "attribution": True}
    answer = rag.ask(PROMPT, max_new_tokens=8, **own)
    assert answer.attribution is not None
    body: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 8, "imprag": own}
    reply = post(client, CHAT, **body)
    *_, last = chunks(client, CHAT, **body)
    (found,) = reply["imprag"]["attributions"]
    assert np.allclose(found["shares"], answer.attribution.shares, atol=1e-5)
    assert last["imprag"]["attributions"] == [found]
    later = [one for part in reply["imprag"]["retrievals"] for one in part["passages"]]
    read = list({one["id"]: one for one in [*reply["imprag"]["passages"], *later]})
    assert read == [one.passage.id for one in answer.passages]
    assert len(found["shares"]) == len(read) > len(reply["imprag"]["passages"])
    message = reply["choices"][0]["message"]
    assert last["choices"][0]["delta"]["annotations"] == message["annotations"]
    titles = {one["url_citation"]["title"] for one in message["annotations"]}
    assert titles <= {answer.passages[n].passage.title for n in found["carried_by"]}


def test_a_passage_has_the_address_of_its_source() -> None:
    assert passage_url(Passage("a", "t", "x", {"url": "https://a.example/b"})) == (
        "https://a.example/b"
    )
    assert passage_url(Passage("a b/ä", "t", "x", {"url": ""})) == "imprag:a%20b/%C3%A4"


def test_embeddings_of_queries_and_passages_give_the_models_scores(
    client: TestClient, rag: ImpRAG
) -> None:
    def embedded(**body: Any) -> np.ndarray:
        data = post(client, "/v1/embeddings", **body)["data"]
        return np.array([one["embedding"] for one in data], np.float32)

    texts = [passage.text for passage in PASSAGES]
    query = embedded(input=PROMPT, input_type="query")
    untitled = [Passage("", "", text) for text in texts]
    np.testing.assert_allclose(embedded(input=texts), rag.encoder(untitled), atol=1e-5)
    ranked = post(client, "/v1/rerank", query=PROMPT, documents=texts)
    scores = (query @ rag.encoder(untitled).T)[0]
    best = np.argsort(-scores)
    assert [one["index"] for one in ranked["results"]] == best.tolist()
    np.testing.assert_allclose(
        [one["relevance_score"] for one in ranked["results"]], scores[best], atol=1e-5
    )
    coded = post(
        client, "/v1/embeddings", input=PROMPT, input_type="query", encoding_format="base64"
    )
    decoded = np.frombuffer(base64.b64decode(coded["data"][0]["embedding"]), "<f4")
    np.testing.assert_array_equal(decoded, query[0])
    tokens = [rag.tokenizer.encode(text) for text in texts[:2]]
    np.testing.assert_array_equal(embedded(input=tokens), embedded(input=texts[:2]))
    assert coded["usage"] == {"prompt_tokens": 4, "total_tokens": 4}


def test_rerank_keeps_the_best_documents_as_they_came(client: TestClient) -> None:
    documents = ["w1 w2", {"title": "w3", "text": "w4"}, "w1"]
    for path in ("/rerank", "/v1/rerank"):
        reply = post(client, path, query=PROMPT, documents=documents, top_n=2)
        assert len(reply["results"]) == 2
        for one in reply["results"]:
            given = documents[one["index"]]
            expected = {"title": "", "text": given} if isinstance(given, str) else given
            assert one["document"] == expected
    bare = post(client, "/rerank", query=PROMPT, documents=documents, return_documents=False)
    assert all(one.keys() == {"index", "relevance_score"} for one in bare["results"])


def test_a_search_by_several_queries_gives_their_best_passages(
    client: TestClient, rag: ImpRAG
) -> None:
    queries = [PROMPT, "w40"]
    page = post(client, "/v1/vector_stores/index/search", query=queries, max_num_results=5)
    found = [one for row in rag.retrieve(queries, 5) for one in row]
    best: dict[str, float] = {}
    for one in sorted(found, key=lambda one: -one.score):
        best.setdefault(one.passage.id, one.score)
    assert {one["file_id"]: one["score"] for one in page["data"]} == dict(list(best.items())[:5])
    everything = post(client, "/v1/vector_stores/index/search", query="w1", max_num_results=50)
    assert len(everything["data"]) == len(PASSAGES)


def test_the_loaded_model_and_corpus_are_told(client: TestClient, rag: ImpRAG) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["imprag"]["k"]) == ("tiny", 3)
    assert model["imprag"]["corpus"]["passages"] == len(PASSAGES)
    assert client.get("/v1/models/tiny").json() == model
    assert client.get("/v1/models/their/other").json()["error"]["code"] == "model_not_found"
    (store,) = client.get("/v1/vector_stores").json()["data"]
    assert store["id"] == model["imprag"]["corpus"]["id"] == "index"
    assert post(client, CHAT, messages=MESSAGES, model="tiny", max_tokens=1)["model"] == "tiny"


def test_a_changed_index_is_served_from_the_next_request_on(tmp_path: Path) -> None:
    rag = asking_rag(tmp_path)
    with TestClient(tiny_app(rag)) as client:
        search = "/v1/vector_stores/index/search"
        asked = {"imprag": {"retrieval": "lexical"}, "query": "w93", "max_num_results": 1}
        post(client, search, **asked)
        post(client, CHAT, messages=MESSAGES, max_tokens=1)
        text = "w93 " * 9
        tiny_rag(tmp_path).index.upsert([Passage("new", "w93", text.strip())])  # another process
        (found,) = post(client, search, **asked)["data"]
        assert (found["file_id"], found["content"][0]["text"]) == ("new", text.strip())
        (model,) = client.get("/v1/models").json()["data"]
        assert model["imprag"]["corpus"]["passages"] == len(PASSAGES) + 1
        everything = {"k": len(PASSAGES) + 1}
        reply = post(client, CHAT, messages=MESSAGES, max_tokens=1, imprag=everything)
        assert "new" in [one["id"] for one in reply["imprag"]["passages"]]
        rag.index.remove([one.id for one in PASSAGES])
        (found,) = post(client, CHAT, messages=MESSAGES, max_tokens=1)["imprag"]["passages"]
        assert found["id"] == "new"


def test_the_built_in_index_is_the_default_store(
    rag: ImpRAG, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMPRAG_CACHE", str(rag.index.path.parent))
    client = TestClient(tiny_app(rag))
    assert [one["id"] for one in client.get("/v1/vector_stores").json()["data"]] == ["default"]
    assert client.post("/v1/vector_stores/default/search", json={"query": "w1"}).status_code == 200


def test_metrics_are_in_prometheus_form(client: TestClient) -> None:
    def counted(name: str) -> float:
        lines = client.get("/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.split(" ")[0] == name)

    before = counted("imprag_generation_tokens_total")
    post(client, COMPLETION, prompt="w1", max_tokens=4)
    assert counted("imprag_generation_tokens_total") == before + 4
    assert client.get("/metrics").headers["Content-Type"].startswith("text/plain")


def test_a_model_without_an_index_answers_from_documents(rag: ImpRAG) -> None:
    with TestClient(tiny_app(ImpRAG(rag.model, rag.tokenizer))) as client:
        (model,) = client.get("/v1/models").json()["data"]
        assert model["imprag"]["corpus"] is None
        refused = client.post(CHAT, json={"messages": MESSAGES})
        assert refused.status_code == 400
        assert "no index to retrieve from" in refused.json()["error"]["message"]
        body = {"messages": MESSAGES, "documents": [{"text": "w1"}], "max_tokens": 2}
        assert client.post(CHAT, json=body).status_code == 200
        assert client.get("/v1/vector_stores").status_code == 400


def test_a_fault_of_the_index_is_logged_but_not_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rag = asking_rag(tmp_path)
    body = {"messages": MESSAGES, "max_tokens": 2}

    def fail(*arguments: object) -> None:
        raise ServerError(str(tmp_path), ConnectionError("nobody is there"))

    def refused(path: str, body: dict[str, Any] | None) -> str:
        caplog.clear()
        reply = client.get(path) if body is None else client.post(path, json=body)
        error = reply.json()["error"]
        assert (reply.status_code, error["type"]) == (500, "server_error")
        assert str(tmp_path) not in error["message"]
        assert str(tmp_path) in caplog.text
        return caplog.text

    with TestClient(tiny_app(rag)) as client:
        with monkeypatch.context() as patch:
            patch.setattr(type(rag.index.index), "search", fail)
            assert "nobody is there" in refused(CHAT, body)
            assert "nobody is there" in refused(CHAT, {**body, "stream": True})
        state = rag.index.path / "state.json"
        state.write_text("{")
        assert "state.json is damaged" in refused(CHAT, body)
        assert "state.json is damaged" in refused("/v1/vector_stores", None)
        state.unlink()
        assert client.post(CHAT, json=body).status_code == 200


def test_work_outside_the_engine_has_a_bound(rag: ImpRAG) -> None:
    app = tiny_app(rag, waiting_calls=1)
    with TestClient(app) as client:
        with app.state.service.place():
            busy = client.post("/v1/embeddings", json={"input": "w1"})
        assert (busy.status_code, busy.json()["error"]["code"]) == (503, "busy")
        assert client.post("/v1/embeddings", json={"input": "w1"}).status_code == 200
