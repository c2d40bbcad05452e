"""Confidence: the same alone, in a batch, streamed and served; answers below it are withheld."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from tiny_api import tiny_app
from tiny_server import Client, running_engine, tiny_rag

from imprag.corpus import Passage
from imprag.errors import ImpRAGError
from imprag.generation.answer import Judge
from imprag.model.confidence import FEATURES, NOT_FOUND, Confidence, features, names_found
from imprag.model.schedule import RetrievalSchedule
from imprag.pipeline import ImpRAG
from imprag.retrieval.again import AnswerRetrievals, LaterSearch
from imprag.retrieval.retriever import RetrievedPassage
from imprag.serving.engine import Engine
from imprag.serving.requests import Ended, EngineRequest, NewText

WEIGHTS = {"bias": 1.0, "read": -2.0, "mean_log_probability": 0.7, "first_second": 0.3}
PROMPTS = ["w1 w2", "w3 w4 w5", "w60", "w7 w8 w9 w10", "w33 w2"]
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def rag(tmp_path_factory: pytest.TempPathFactory) -> ImpRAG:
    return tiny_rag(tmp_path_factory.mktemp("confidence"), confidence=WEIGHTS)


@pytest.fixture
def engine(rag: ImpRAG) -> Iterator[Engine]:
    with running_engine(rag, slots=6) as engine:
        yield engine


def test_evidence_comes_from_ranking_reading_and_tokens(rag: ImpRAG) -> None:
    """Held against the logits of ``generate`` and the shares of an attribution."""
    new = 6
    answer = rag.ask(
        PROMPTS[0], raw=True, max_new_tokens=new, stop=(), min_confidence=0, attribution=True
    )
    ids = torch.tensor([rag.tokenizer(PROMPTS[0])["input_ids"]])
    kv = rag.kv_cache.kv([[one.passage for one in answer.passages]])
    whole = rag.model.generate(
        ids,
        torch.ones_like(ids),
        lambda queries: kv,
        position_shift=rag.config.position_shift(3),
        max_new_tokens=new,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    logits = torch.cat(whole.logits).double()
    tokens = whole.sequences[0, ids.shape[1] :]
    expected = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    assert answer.evidence is not None
    assert answer.attribution is not None
    found = answer.evidence
    scores = [one.score for one in answer.passages]
    assert list(found) == list(FEATURES)
    assert found["score"] == scores[0]
    assert found["first_second"] == pytest.approx(scores[0] - scores[1])
    assert found["first_tenth"] == pytest.approx(scores[0] - scores[2])
    assert found["read"] == pytest.approx(sum(answer.attribution.shares))
    assert found["read_most"] == max(answer.attribution.shares)
    assert found["mean_log_probability"] == pytest.approx(float(expected.mean()), abs=1e-4)
    assert found["least_log_probability"] == pytest.approx(float(expected.min()), abs=1e-4)
    logit = sum(weight * found[name] for name, weight in WEIGHTS.items())
    assert answer.confidence == pytest.approx(float(torch.sigmoid(torch.tensor(logit))), abs=1e-6)


def test_penalties_change_the_served_confidence_as_in_the_pipeline(
    rag: ImpRAG, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {"max_new_tokens": 9, "min_new_tokens": 4, "stop": ()}
    plain = rag.ask(PROMPTS[0], min_confidence=0, **arguments)
    monkeypatch.setattr(rag.model.lm.generation_config, "repetition_penalty", 1.7)
    alone = rag.ask(PROMPTS[0], min_confidence=0, **arguments)
    assert alone.confidence != pytest.approx(plain.confidence, abs=1e-3)
    with running_engine(rag, slots=2) as engine:
        client = Client(engine, EngineRequest(PROMPTS[0], min_confidence=0, **arguments))
        client.wait()
        (ended,) = client.of(Ended)
    assert ended.text == alone.text
    assert ended.confidence == pytest.approx(alone.confidence, abs=1e-5)


def test_confidence_is_the_same_alone_in_a_batch_streamed_and_served(
    rag: ImpRAG, engine: Engine
) -> None:
    arguments: dict[str, Any] = {"max_new_tokens": 9, "stop": ()}
    clients = [
        Client(
            engine, EngineRequest(prompt, min_confidence=n % 2 * 0.0 if n else None, **arguments)
        )
        for n, prompt in enumerate(PROMPTS)
    ]
    batch = rag.generate(PROMPTS, min_confidence=0, **arguments)
    sampled = rag.ask(PROMPTS[1], min_confidence=0, repetition_penalty=1.0, top_h=None, **arguments)
    assert sampled.confidence == pytest.approx(batch[1].confidence, abs=1e-5)
    assert len({round(one.confidence or 0, 4) for one in batch}) == len(PROMPTS)
    for n, (client, prompt, expected) in enumerate(zip(clients, PROMPTS, batch, strict=True)):
        alone = rag.ask(prompt, min_confidence=0, **arguments)
        assert alone.text == expected.text
        assert alone.confidence == pytest.approx(expected.confidence, abs=1e-5)
        client.wait()
        (ended,) = client.of(Ended)
        if n == 0:
            assert ended.confidence is None
            continue
        assert ended.text == alone.text
        assert ended.confidence == pytest.approx(alone.confidence, abs=1e-5)
        stream = rag.stream(prompt, min_confidence=0, **arguments)
        assert list(stream) == [alone.text]
        assert stream.answer is not None
        assert stream.answer.confidence == pytest.approx(alone.confidence, abs=1e-5)


def test_answers_below_the_least_confidence_are_withheld(rag: ImpRAG, engine: Engine) -> None:
    arguments: dict[str, Any] = {"max_new_tokens": 9, "stop": (), "attribution": True}
    known = rag.generate(PROMPTS, min_confidence=0, **arguments)
    middle = sorted(one.confidence or 0 for one in known)[2]
    least = middle - 1e-4
    withheld = 0
    for prompt, answer in zip(PROMPTS, known, strict=True):
        found = rag.ask(prompt, min_confidence=least, **arguments)
        client = Client(engine, EngineRequest(prompt, min_confidence=least, **arguments))
        client.wait()
        (ended,) = client.of(Ended)
        assert answer.confidence is not None
        assert found.abstained == ended.abstained == (answer.confidence < least)
        assert found.text == ended.text == (NOT_FOUND if found.abstained else answer.text)
        assert [one.text for one in client.of(NewText)] == [found.text]
        assert (found.attribution is None) == found.abstained
        assert "".join(rag.stream(prompt, min_confidence=least, **arguments)) == found.text
        withheld += found.abstained
    assert withheld == 2


def test_the_api_says_how_likely_an_answer_is_right_and_withholds_it(rag: ImpRAG) -> None:
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": PROMPTS[0]}],
        "max_tokens": 5,
        "imprag": {"min_confidence": 0},
    }
    with TestClient(tiny_app(rag), base_url="http://localhost") as client:
        reply = client.post(CHAT, json=body).json()
        expected = rag.ask(PROMPTS[0], max_new_tokens=5, min_confidence=0)
        (found,) = reply["imprag"]["confidences"]
        assert found["confidence"] == pytest.approx(expected.confidence, abs=1e-5)
        assert reply["choices"][0]["message"]["content"] == expected.text
        body["imprag"] = {"min_confidence": 1}
        withheld = client.post(CHAT, json=body).json()
        assert withheld["choices"][0]["message"]["content"] == NOT_FOUND
        assert withheld["choices"][0]["message"]["annotations"] == []
        assert withheld["imprag"]["confidences"][0]["abstained"]
        lines = client.post(CHAT, json={**body, "stream": True}).text
        assert lines.count(NOT_FOUND) == 1
        assert expected.text not in lines
        del body["imprag"]
        assert client.post(CHAT, json=body).json()["imprag"]["confidences"] == []
    with TestClient(tiny_app(rag, min_confidence=1.0), base_url="http://localhost") as client:
        message = client.post(CHAT, json=body).json()["choices"][0]["message"]
        assert message["content"] == NOT_FOUND


def test_a_model_without_fitted_confidence_refuses_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ImpRAGError, match=r"^tiny has no fitted confidence, .*fit_confidence\.py$"):
        tiny_rag(tmp_path).ask("w1", min_confidence=0.5)


@pytest.mark.parametrize("least", [-0.1, 1.01, float("nan"), "high"])
def test_a_least_confidence_outside_0_to_1_is_refused(rag: ImpRAG, least: Any) -> None:
    with pytest.raises(ImpRAGError, match="min_confidence must be between 0 and 1"):
        rag.ask("w1", min_confidence=least)


def test_scores_of_later_retrievals_are_no_evidence(rag: ImpRAG) -> None:
    """Those of different queries do not compare."""
    again = {"retrieve": "every:2", "passages_kept": "beside"}
    arguments: dict[str, Any] = {"max_new_tokens": 6, "stop": (), "min_confidence": 0}
    for prompt in PROMPTS:
        once, more = (rag.ask(prompt, **arguments, **settings) for settings in ({}, again))
        assert len(more.retrievals) > 1
        assert once.evidence is not None
        assert more.evidence is not None
        for name in ("score", "first_second", "first_tenth"):
            assert more.evidence[name] == pytest.approx(once.evidence[name])


def test_a_servers_least_confidence_is_for_what_the_model_ranked(rag: ImpRAG) -> None:
    with TestClient(tiny_app(rag, min_confidence=1.0)) as client:

        def text(**more: Any) -> str:
            body = {"model": "tiny", "messages": [{"role": "user", "content": "w1 w2"}], **more}
            return str(client.post(CHAT, json=body).json()["choices"][0]["message"]["content"])

        assert text() == NOT_FOUND
        assert text(imprag={"k": 0}) != NOT_FOUND
        assert text(documents=[{"title": "w3", "text": "w4"}]) != NOT_FOUND


@pytest.mark.parametrize(
    "values", [{"luck": 1.0}, {"bias": "1"}, {"bias": float("inf")}, {"bias": 10**400}, [1.0]]
)
def test_bad_weights_are_refused(values: Any) -> None:
    with pytest.raises(ImpRAGError, match="confidence"):
        Confidence.from_json(values)


NIGERIA = "Nigeria, Geography\nCoastline: 853 km"
NIGER = "Niger, Geography\nCoastline: 0 km; bordering Nigeria"


@pytest.mark.parametrize(
    ("prompt", "answer", "passages", "share"),
    [
        ("Q: How long is Niger's coast? A:", "853 km", [NIGERIA, NIGER], 0),
        ("Q: How long is Niger's coast? A:", "0 km", [NIGERIA, NIGER], 1),
        ("Q: How long is Niger's coast? A:", "53 km", [NIGERIA, NIGER], 0),
        ("Q: How long is Niger's coast? A:", "", [NIGER], 0),
        ("Is Niger's coast longer than Nigeria's?", "0 km", [NIGER], 1),
        ("Is Niger's coast longer than Chad's?", "0 km", [NIGER], 0.5),
        ("how long is its coast?", "0 km", [NIGER], 0.5),
        ("HOW LONG IS NIGER'S COAST?", "0 km", [NIGER], 0.5),
        ("Q: coast of Niger A:", "0 km", [NIGER], 1),
        ("What is the capital of St. Lucia?", "Castries.", ["Saint Lucia\nCastries"], 1),
        ("How long is the coast of the U.S. Virgin Islands?", "1", ["Virgin Islands: 1"], 1),
        ("How high is Nepal?", "8849 m", ["Nepal: 8,849 m"], 1),
        ("How high is Nepal?", "849 m", ["Nepal: 8,849 m"], 0),
        ("How high is Nepal?", "5%", ["Nepal: 12.5%"], 0),
        ("What is Chad's capital?", "N’Djamena", ["Chad: N'Djamena"], 1),
        ("how long is its coast?", "1 km", [NIGER], 0),
        ("Use the passages.\nWhich coast had 853 km in 2024?", "nigeria", [NIGERIA], 0.5),
        ("How high is it? (answer in M)", "8,849 m", ["M: 8,849 m"], 0.5),
        ("尼泊尔的首都是哪里？", "加德满都", ["首都是加德满都。"], 0.5),
        ("", "", [], 0),
    ],
)
def test_names_are_sought_in_the_first_passage_that_states_the_answer(
    prompt: str, answer: str, passages: list[str], share: float
) -> None:
    assert names_found(prompt, answer, passages) == share


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_answer_is_withheld(text: str, rag: ImpRAG) -> None:
    judge = Judge(rag.tokenizer, False, Confidence({"bias": 9.0}), 0.01)
    judged = judge([], text, AnswerRetrievals(None, "?", []), [], [])
    assert (judged["confidence"], judged["text"]) == (0, NOT_FOUND)


def test_only_what_follows_the_last_separator_is_sought(rag: ImpRAG) -> None:
    judge = Judge(rag.tokenizer, False, Confidence({"names": 1.0}), 0)
    later = LaterSearch(RetrievalSchedule.parse("on:;"), None, 1, None, None)  # type: ignore
    found = [RetrievedPassage(Passage("1", "Nepal", "Height: 8,849 m"), 1.0)]
    for again, names in ((later, 1), (None, 0)):
        read = AnswerRetrievals(again, "How high is Nepal?", found)
        judged = judge([], "Nepal ; 8,849 m", read, [], [])
        assert judged["evidence"]["names"] == names  # type: ignore[index]


def test_an_answer_without_passages_or_tokens_has_features() -> None:
    found = features([], [], [], 0.0)
    assert found == dict.fromkeys(FEATURES, 0.0) | {"bias": 1.0}
    assert Confidence({"bias": 0.0}).of(found) == 0.5
    assert Confidence({"bias": 1e9}).of(found) == pytest.approx(1)
