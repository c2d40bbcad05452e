"""The engine with answers that retrieve again: the pipeline's answers, whatever else runs."""

from typing import Any

import pytest
from tiny_server import Client, close, running_engine, tiny_rag

from imprag.errors import ImpRAGError
from imprag.pipeline import Answer, ImpRAG
from imprag.retrieval import RetrievedPassage
from imprag.retrieval.implicit import ImplicitRetriever
from imprag.serving.requests import Ended, EngineRequest, Failed, Sampling

PROMPTS = [f"w{n} w{n + 1} w{(5 * n) % 90}" + " w7" * (n % 4) for n in range(9)]
SETTINGS: list[dict[str, Any]] = [
    {"retrieve": "every:3", "attribution": True},
    {"retrieve": "every:4", "passages_kept": "instead", "attribution": True},
    {"attribution": True},
    {"retrieve": "on:w5", "retrieval": "hybrid"},
    {"retrieve": "every:1", "k": 1, "retrieval": "hybrid", "passages_kept": "instead"},
    {"retrieve": "every:2", "retrieval": "lexical"},
]


def ids(passages: list[RetrievedPassage]) -> list[str]:
    return [one.passage.id for one in passages]


@pytest.fixture(scope="module")
def rag(tmp_path_factory: pytest.TempPathFactory) -> ImpRAG:
    return tiny_rag(tmp_path_factory.mktemp("again"), attention_score_bias=1.0)


def asked(rag: ImpRAG, prompt: str, settings: dict[str, Any], new: int) -> Answer:
    settings = dict(settings)
    other = ImpRAG(
        rag.model, rag.tokenizer, rag.index, retrieval=settings.pop("retrieval", "implicit")
    )
    return other.ask(prompt, settings.pop("k", None), max_new_tokens=new, stop=(), **settings)


def test_served_answers_equal_the_pipelines(rag: ImpRAG) -> None:
    lengths = [6 + n % 5 for n in range(len(PROMPTS))]
    settings = [SETTINGS[n % len(SETTINGS)] for n in range(len(PROMPTS))]
    with running_engine(rag, slots=4) as engine:
        clients = [
            Client(engine, EngineRequest(prompt, max_new_tokens=length, stop=(), **own))
            for prompt, length, own in zip(PROMPTS, lengths, settings, strict=True)
        ]
        numbers = set()
        for n, client in enumerate(clients):
            client.wait()
            (ended,) = client.of(Ended)
            answer = asked(rag, PROMPTS[n], settings[n], lengths[n])
            assert ended.text == answer.text
            got = [(one.tokens, one.written, ids(one.passages)) for one in ended.retrievals]
            later = answer.retrievals[1:]
            assert got == [(one.tokens, one.written, ids(one.passages)) for one in later]
            numbers.add(len(later))
            if "attribution" in settings[n]:
                assert close(ended.attribution, answer.attribution)
                assert answer.attribution is not None
                assert len(answer.attribution.shares) == len(answer.passages)
            else:
                assert ended.attribution is None
        assert len(numbers) > 2


def test_several_answers_to_a_prompt_ask_for_themselves(rag: ImpRAG) -> None:
    sampling = Sampling(temperature=1.5, seed=3)
    own: dict[str, Any] = {"retrieve": "every:2", "sampling": sampling, "stop": ()}
    own["attribution"] = True
    with running_engine(rag, slots=4) as engine:
        client = Client(engine, EngineRequest("w9 w3", n=3, max_new_tokens=8, **own))
        client.wait()
        together = sorted(client.of(Ended), key=lambda ended: ended.choice)
        other = Client(engine, EngineRequest("w9 w3", n=3, max_new_tokens=8, **own))
        other.wait()
        again = sorted(other.of(Ended), key=lambda ended: ended.choice)
    assert [one.text for one in together] == [one.text for one in again]
    for one, other in zip(together, again, strict=True):
        assert close(one.attribution, other.attribution)
    assert len({tuple(ids(r.passages)[0] for r in one.retrievals) for one in together}) > 1


def test_a_later_retrieval_that_fails_ends_its_request_alone(
    rag: ImpRAG, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = ImplicitRetriever.search

    def failing(self: Any, prompts: Any, *arguments: Any) -> Any:
        if prompts.texts[0].startswith("w1 ") and len(prompts.texts[0].split()) > 2:
            raise ImpRAGError("the index has left")
        return search(self, prompts, *arguments)

    monkeypatch.setattr(ImplicitRetriever, "search", failing)
    own: dict[str, Any] = {"retrieve": "every:3", "max_new_tokens": 8, "stop": ()}
    with running_engine(rag, slots=4) as engine:
        clients = [Client(engine, EngineRequest(prompt, **own)) for prompt in ("w1 w2", "w77 w3")]
        for client in clients:
            client.wait()
    (failed,) = clients[0].of(Failed)
    assert "the index has left" in str(failed.error)
    (ended,) = clients[1].of(Ended)
    assert ended.retrievals


def test_asking_again_without_retrieval_is_refused(rag: ImpRAG) -> None:
    with running_engine(rag, slots=2) as engine:
        settings: list[dict[str, Any]] = [{"k": 0}, {"passages": []}]
        for own in settings:
            with pytest.raises(ImpRAGError, match="leave it out"):
                engine.ask(EngineRequest("w1", retrieve="every:2", **own))
        with pytest.raises(ImpRAGError, match="once, every:N"):
            engine.ask(EngineRequest("w1", retrieve="never"))
