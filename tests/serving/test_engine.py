"""The engine: the same answers as the pipeline, with requests that come and go."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_server import PASSAGES, Client, close, running_engine, tiny_rag

from imprag.errors import ImpRAGError
from imprag.io.file_cache import FileCache
from imprag.kv_cache import DiskCache, PassageKVCache, build_kv_cache
from imprag.model.decoding import DecodingBatch
from imprag.pipeline import ImpRAG
from imprag.retrieval.retriever import RetrievedPassage
from imprag.serving.engine import Engine
from imprag.serving.requests import (
    BusyError,
    Completed,
    Ended,
    EngineRequest,
    Failed,
    NewText,
    Retrieved,
    Sampling,
    TimeLimitError,
)
from imprag.serving.running import RunningRequest

PROMPTS = [f"w{n} w{n + 1} w{(5 * n) % 90}" + " w7" * (n % 4) for n in range(24)]


@pytest.fixture(scope="module")
def rag(tmp_path_factory: pytest.TempPathFactory) -> ImpRAG:
    return tiny_rag(tmp_path_factory.mktemp("engine"))


@pytest.fixture
def engine(rag: ImpRAG) -> Iterator[Engine]:
    with running_engine(rag, slots=6) as engine:
        yield engine


def request(prompt: str, **settings: Any) -> EngineRequest:
    return EngineRequest(prompt, **{"max_new_tokens": 12, "stop": (), **settings})


class Gate:
    """Holds the engine's thread at its next event until it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, event: object) -> None:
        if isinstance(event, NewText):
            self.reached.set()
            assert self.opened.wait(60)


@pytest.fixture
def held(engine: Engine) -> Iterator[Gate]:
    """The engine, held while it makes the tokens of another request."""
    gate = Gate()
    engine.submit(request("w1 w2", max_new_tokens=40), gate)
    assert gate.reached.wait(60)
    yield gate
    gate.opened.set()


def test_requests_at_once_get_the_answers_of_the_pipeline(rag: ImpRAG, engine: Engine) -> None:
    lengths = [3 + n % 9 for n in range(len(PROMPTS))]
    clients = [
        Client(engine, request(prompt, max_new_tokens=length, k=n % 4))
        for n, (prompt, length) in enumerate(zip(PROMPTS, lengths, strict=True))
    ]
    for n, client in enumerate(clients):
        client.wait()
        answer = rag.ask(PROMPTS[n], n % 4, max_new_tokens=lengths[n], stop=())
        (ended,) = client.of(Ended)
        assert ended.text == answer.text
        assert "".join(event.text for event in client.of(NewText)) == answer.text
        (retrieved,) = client.of(Retrieved)
        assert [one.passage.id for one in retrieved.passages] == [
            one.passage.id for one in answer.passages
        ]
        assert [one.score for one in retrieved.passages] == pytest.approx(
            [one.score for one in answer.passages], abs=1e-5
        )


@pytest.mark.parametrize(
    "settings", [{"passage_encoding": "segmented"}, {"attention_score_bias": 2.0}]
)
def test_models_of_other_settings_get_the_answers_of_the_pipeline(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    rag = tiny_rag(tmp_path, **settings)
    with running_engine(rag, slots=3) as engine:
        clients = [Client(engine, request(prompt)) for prompt in PROMPTS[:6]]
        for prompt, client in zip(PROMPTS, clients, strict=False):
            client.wait()
            assert client.of(Ended)[0].text == rag.ask(prompt, max_new_tokens=12, stop=()).text


@pytest.mark.parametrize("retrieval", ["hybrid", "lexical"])
def test_a_request_may_retrieve_by_another_retriever(
    rag: ImpRAG, engine: Engine, retrieval: str
) -> None:
    other = tiny_rag(rag.index.corpus.path.parent.parent)
    other.retrieval = retrieval
    client = Client(engine, request("w3 w9", retrieval=retrieval))
    client.wait()
    (retrieved,) = client.of(Retrieved)
    expected = other.ask("w3 w9", max_new_tokens=12, stop=())
    assert [one.passage.id for one in retrieved.passages] == [
        one.passage.id for one in expected.passages
    ]
    assert client.of(Ended)[0].text == expected.text


def test_given_passages_are_read(rag: ImpRAG, engine: Engine) -> None:
    given = [RetrievedPassage(PASSAGES[n], 1.0) for n in (2, 5)]
    (answer,) = engine.ask(request("w1", passages=given))
    assert answer.text == rag.ask("w1", passages=given, max_new_tokens=12, stop=()).text


def test_an_answer_ends_before_its_stop_string(rag: ImpRAG, engine: Engine) -> None:
    whole = rag.ask("w4 w8", max_new_tokens=12, stop=()).text
    stop = whole.split()[3]
    (answer,) = engine.ask(request("w4 w8", stop=(stop,)))
    assert answer.text == rag.ask("w4 w8", max_new_tokens=12, stop=(stop,)).text
    assert answer.reason == "stop"
    assert len(answer.text) < len(whole)


def test_the_limit_of_tokens_is_the_reason_length(engine: Engine) -> None:
    (answer,) = engine.ask(request("w4 w8", max_new_tokens=3))
    assert (answer.reason, answer.tokens) == ("length", 3)


def test_an_answer_of_a_least_length_has_no_end_token_before(rag: ImpRAG, engine: Engine) -> None:
    words = engine.ask(request("w4 w8"))[0].text.split()
    place = words.index(words[4])
    engine._ends = [rag.tokenizer.convert_tokens_to_ids(words[4])]
    early = engine.ask(request("w4 w8"))[0]
    assert (early.tokens, early.reason, early.text) == (place + 1, "stop", " ".join(words[:place]))
    late = engine.ask(request("w4 w8", min_new_tokens=9))[0]
    assert late.tokens >= 9
    assert words[4] not in late.text.split()[:8]


def test_samples_depend_on_the_seed_alone(engine: Engine) -> None:
    def sample(seed: int, n: int = 1) -> list[str]:
        sampling = Sampling(temperature=1.5, top_p=0.95, seed=seed)
        return [one.text for one in engine.ask(request("w4", sampling=sampling, n=n))]

    alone = sample(3, n=3)
    others = [Client(engine, request(prompt)) for prompt in PROMPTS[:4]]
    assert sample(3, n=3) == alone
    for client in others:
        client.wait()
    assert len(set(alone)) == 3
    assert sample(3) == alone[:1]
    assert sample(4) != alone[:1]


def test_a_tiny_nucleus_is_the_most_probable_token(engine: Engine) -> None:
    sampling = Sampling(temperature=2.0, top_p=1e-6, seed=1)
    sampled = engine.ask(request("w4", sampling=sampling))
    assert [one.text for one in sampled] == [one.text for one in engine.ask(request("w4"))]


def test_a_cancelled_request_frees_its_slot(engine: Engine, held: Gate) -> None:
    client = Client(engine, request("w1", max_new_tokens=900))
    client.ticket.cancel()
    held.opened.set()
    assert engine.ask(request("w2"))
    assert not client.of(Ended)
    while engine.running or engine.waiting:
        engine.ask(request("w2", max_new_tokens=1))
    assert not client.of(Completed)


def test_a_receiver_that_fails_cancels_its_request(engine: Engine) -> None:
    def fail(event: object) -> None:
        raise RuntimeError("gone")

    engine.submit(request("w1", max_new_tokens=900), fail)
    assert engine.ask(request("w2"))
    assert engine.running == 0


def test_a_full_queue_refuses_with_a_time_to_wait(rag: ImpRAG) -> None:
    with running_engine(rag, slots=1, queue=2) as engine:
        gate = Gate()
        engine.submit(request("w1"), gate)
        assert gate.reached.wait(60)
        waiting = [Client(engine, request("w2")) for _ in range(2)]
        with pytest.raises(BusyError, match="2 requests are waiting") as caught:
            engine.submit(request("w3"), print)
        assert caught.value.retry_after >= 1
        gate.opened.set()
        for client in waiting:
            client.wait()


def test_a_request_that_waits_too_long_fails(rag: ImpRAG) -> None:
    with running_engine(rag, slots=1) as engine:
        gate = Gate()
        engine.submit(request("w1"), gate)
        assert gate.reached.wait(60)
        client = Client(engine, request("w2", time_limit=0.0))
        gate.opened.set()
        client.wait()
        (failed,) = client.of(Failed)
        assert isinstance(failed.error, TimeLimitError)


def test_a_running_answer_ends_at_its_time_limit(engine: Engine) -> None:
    client = Client(engine, request("w1", max_new_tokens=900, time_limit=0.3))
    client.wait()
    (ended,) = client.of(Ended)
    assert ended.reason == "length"
    assert 0 < ended.tokens < 900


def test_one_bad_request_fails_alone(
    engine: Engine, held: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = type(engine.rag.retriever).search

    def broken(self: Any, prompts: Any, queries: Any, k: int) -> Any:
        if prompts.texts == ["w3"]:
            raise RuntimeError("broken")
        return search(self, prompts, queries, k)

    monkeypatch.setattr(type(engine.rag.retriever), "search", broken)
    clients = [Client(engine, request(f"w{n}")) for n in (2, 3, 4)]
    held.opened.set()
    for client in clients:
        client.wait()
    assert [len(client.of(Failed)) for client in clients] == [0, 1, 0]


@pytest.mark.parametrize("part", ["step", "keep"])
def test_the_engine_outlives_a_batch_that_fails(
    engine: Engine, held: Gate, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """No memory for a step, or none for the copy of the rows that remain."""
    client = Client(engine, request("w2", max_new_tokens=300))
    with monkeypatch.context() as patched:
        patched.setattr(DecodingBatch, part, lambda self, *given: 1 / 0)
        held.opened.set()
        client.wait()
    assert isinstance(client.of(Failed)[0].error, ZeroDivisionError)
    assert (
        engine.ask(request("w2"))[0].text == engine.rag.ask("w2", max_new_tokens=12, stop=()).text
    )


def test_closing_lets_running_requests_finish(rag: ImpRAG) -> None:
    with running_engine(rag, slots=2) as engine:
        clients = [Client(engine, request(prompt)) for prompt in PROMPTS[:5]]
        engine.close()
        assert all(client.of(Completed) for client in clients)
        with pytest.raises(BusyError, match="shutting down"):
            engine.submit(request("w1"), print)


def test_closing_without_waiting_fails_what_is_left(rag: ImpRAG) -> None:
    with running_engine(rag, slots=1) as engine:
        clients = [Client(engine, request(prompt, max_new_tokens=900)) for prompt in PROMPTS[:3]]
        engine.close(drain=False)
        for client in clients:
            assert isinstance(client.of(Failed)[0].error, BusyError)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": " "}, "the prompt is empty"),
        ({"prompt": "w1 " * 1200}, "only .* fit"),
        ({"k": 13}, "k is 13"),
        ({"k": -1}, "must not be negative"),
        ({"n": 0}, "n must be between 1 and 6"),
        ({"n": 7}, "n must be between 1 and 6"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"min_new_tokens": 13}, "min_new_tokens must be between 0 and max_new_tokens, 12"),
        ({"stop": ("",)}, "stop must be strings that are not empty"),
        ({"sampling": Sampling(temperature=-1.0)}, "temperature must not be negative"),
        ({"sampling": Sampling(temperature=float("nan"))}, "temperature must not be negative"),
        ({"sampling": Sampling(temperature=1.0, top_p=0.0)}, "top_p must be above 0"),
        ({"retrieval": "nothing"}, "nothing"),
        ({"retrieval": "implicit", "lexical_weight": 1.0}, "for hybrid retrieval"),
    ],
)
def test_bad_requests_are_refused_at_once(
    engine: Engine, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ImpRAGError, match=message):
        engine.submit(request(**{"prompt": "w1", **settings}), print)


def test_metrics_count_what_happened(tmp_path: Path) -> None:
    rag = tiny_rag(tmp_path)
    with running_engine(rag) as engine:
        engine.ask(request("w1 w2", max_new_tokens=5))
        value = engine.metrics.registry.get_sample_value
        assert value("imprag_generation_tokens_total") == 5
        assert value("imprag_prompt_tokens_total") == 2
        assert value("imprag_requests_total", {"outcome": "completed"}) == 1
        assert value("imprag_time_to_first_token_seconds_count") == 1
        assert value("imprag_inter_token_latency_seconds_count") == 4
        assert value("imprag_requests_running") == 0
        hits, misses = value("imprag_kv_cache_hits_total"), value("imprag_kv_cache_misses_total")
        assert hits + misses == 3
        assert value("imprag_kv_cache_bytes") > 0


def test_passages_are_kept_coded_if_the_pipeline_says_so(rag: ImpRAG, tmp_path: Path) -> None:
    other = tiny_rag(tmp_path)
    other.kv_cache = PassageKVCache(other.model, other.tokenizer, keep_coded=True)
    with running_engine(other) as engine:
        (answer,) = engine.ask(request("w1 w2"))
        assert other.kv_cache.keep_coded
        assert other.kv_cache.misses == 3
    assert answer.text == rag.ask("w1 w2", max_new_tokens=12, stop=()).text


def test_the_parts_of_a_batch_take_the_same_time(
    engine: Engine, held: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request's query time contains the search of another one."""
    laps: list[str] = []
    monkeypatch.setattr(RunningRequest, "lap", lambda self, name: laps.append(name))
    clients = [Client(engine, request(f"w{n}", max_new_tokens=1, k=0)) for n in (2, 3)]
    held.opened.set()
    for client in clients:
        client.wait()
    assert [name for name in laps if name != "queue"] == [
        *("query", "query", "search", "search", "encode", "encode")
    ]


@pytest.mark.parametrize(
    "settings", [{"k": 5}, {"prompt": "w30 w31 " * 60, "k": 0}], ids=["passages", "long prompt"]
)
def test_running_answers_go_on_during_a_long_pass(
    rag: ImpRAG, engine: Engine, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """A pass that takes its time is interrupted between layers, and changes no answer."""
    monkeypatch.setattr("imprag.serving.interruptions._LEAST", 0.0)
    steps_inside: list[int] = []
    step, beginning = engine._batch.step, lambda: bool(engine._beginning)

    def counted(tokens: Any, *others: Any) -> Any:
        if beginning():
            steps_inside.append(len(tokens))
        return step(tokens, *others)

    monkeypatch.setattr(engine._batch, "step", counted)
    gate = Gate()
    running = {"max_new_tokens": 60, "k": 2}
    first = Client(engine, request("w1 w2", **running))
    engine.submit(request("w1 w2", max_new_tokens=40), gate)
    assert gate.reached.wait(60)
    second = Client(engine, request(**{"prompt": "w30 w31", **settings}))
    gate.opened.set()
    for client, asked in ((first, running), (second, {"max_new_tokens": 12, **settings})):
        client.wait()
        arguments = {"prompt": "w1 w2" if client is first else "w30 w31", "stop": (), **asked}
        assert client.of(Ended)[0].text == rag.ask(**arguments).text
    assert steps_inside


def test_a_pass_ends_when_nobody_waits_for_it(rag: ImpRAG, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imprag.serving.interruptions._LEAST", 0.0)
    engine, ran = Engine(rag), []

    def cancel(*given: object) -> None:
        ran.append("first layer")
        client.ticket.cancel()

    layers = rag.model.lm.base_model.layers
    hooks = [
        layers[0].register_forward_pre_hook(cancel),
        layers[-1].register_forward_pre_hook(lambda *given: ran.append("last layer")),
    ]
    client = Client(engine, request("w1 w2", k=0))
    try:
        engine.start()
        engine.close()
    finally:
        for hook in hooks:
            hook.remove()
    assert ran == ["first layer"]
    assert client.events == []
    assert not any(layer._forward_pre_hooks for layer in layers)


def test_passages_of_a_folder_are_read_from_it(tmp_path: Path) -> None:
    rag = tiny_rag(tmp_path)
    ids = ["p3", "p4", "p5"]
    rows = rag.corpus.find(ids)
    kv = tmp_path / "kv"
    build_kv_cache(
        rag.corpus, rag.model, rag.tokenizer, kv, codec="fp32", rows=rows, progress=False
    )
    rag.use_kv_cache(kv)
    given = [RetrievedPassage(PASSAGES[n], 1.0) for n in (2, 3, 5)]
    with running_engine(rag) as engine:
        engine.ask(request("w1", passages=given))
        assert (rag.kv_cache.hits, rag.kv_cache.misses) == (2, 1)
        engine.ask(request("w1", passages=given))
        assert (rag.kv_cache.hits, rag.kv_cache.misses) == (5, 1)
        assert engine.metrics.registry.get_sample_value("imprag_kv_cache_bytes") > 0


def test_an_engine_reads_from_disk_what_an_earlier_one_has_encoded(tmp_path: Path) -> None:
    texts, counts = [], []
    for _ in range(2):
        rag = tiny_rag(tmp_path)
        disk = DiskCache(rag.model, rag.tokenizer, FileCache(tmp_path / "kv", 10**7))
        rag.use_kv_cache(disk)
        with running_engine(rag) as engine:
            texts.append([engine.ask(request(PROMPTS[0]))[0].text for _ in range(2)])
            counts.append((engine.kv_cache.hits, engine.kv_cache.misses))
            assert engine.kv_bytes > 0
        disk.flush()
    assert texts[0] == texts[1]
    assert counts == [(3, 3), (6, 0)]


def test_requests_at_once_get_the_attributions_of_the_pipeline(rag: ImpRAG, engine: Engine) -> None:
    """Alone, in a batch, streamed and served; other requests of the same batch ask for none."""
    asked = [(prompt, 3 + 2 * n, 1 + n % 3) for n, prompt in enumerate(PROMPTS[:8])]
    clients = [
        Client(
            engine, request(prompt, max_new_tokens=new, k=k, attribution=n % 2 == 0, n=1 + n % 2)
        )
        for n, (prompt, new, k) in enumerate(asked)
    ]
    for n, (client, (prompt, new, k)) in enumerate(zip(clients, asked, strict=True)):
        client.wait()
        if n % 2:
            assert all(ended.attribution is None for ended in client.of(Ended))
            continue
        arguments: Any = {"k": k, "max_new_tokens": new, "stop": (), "attribution": True}
        alone = rag.ask(prompt, **arguments)
        assert alone.attribution is not None
        assert "".join(token.text for token in alone.attribution.tokens) == alone.text
        assert close(client.of(Ended)[0].attribution, alone.attribution)
        batch = rag.generate([prompt, "w5", "w6 w7 w8 w9 w10"], **arguments)
        assert close(batch[0].attribution, alone.attribution)
        stream = rag.stream(prompt, **arguments)
        assert "".join(stream).strip() == alone.text
        assert stream.answer is not None
        assert close(stream.answer.attribution, alone.attribution)


def test_attribution_leaves_out_what_is_no_text_of_the_answer(rag: ImpRAG, engine: Engine) -> None:
    """The stop string and what follows it are no part of the answer, nor of its shares."""
    whole = rag.ask("w1 w2", max_new_tokens=8, stop=(), attribution=True)
    words = whole.text.split()
    stop = next(word for n, word in enumerate(words) if word not in words[:n] and n > 1)
    kept = words[: words.index(stop)]
    cut = rag.ask("w1 w2", max_new_tokens=8, stop=stop, attribution=True)
    (served,) = engine.ask(request("w1 w2", max_new_tokens=8, stop=(stop,), attribution=True))
    assert whole.attribution is not None
    means = np.mean([token.shares for token in whole.attribution.tokens[: len(kept)]], axis=0)
    for attribution in (cut.attribution, served.attribution):
        assert attribution is not None
        assert "".join(token.text for token in attribution.tokens).split() == kept
        np.testing.assert_allclose(attribution.shares, means, atol=1e-5)
        assert attribution.own == pytest.approx(1 - means.sum(), abs=1e-5)
