"""The speed benchmark's arithmetic, on a tiny model and a retriever that costs nothing."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from conftest import tiny_lm, tiny_tokenizer
from imprag.cli import main
from imprag.corpus import Corpus, Passage
from imprag.errors import ImpRAGError
from imprag.evaluation import speed, speed_arms, speed_measure
from imprag.evaluation.speed_report import growth, ratios, table, write_plots
from imprag.model import ImpRAGConfig, ImpRAGModel
from imprag.retrieval import RetrievedPassage


class FirstPassages:
    """In the teacher's place: finds the corpus's first passages."""

    def __init__(self, corpus: Corpus, encoder: object) -> None:
        self.corpus = corpus

    def retrieve(self, prompts: Sequence[str], k: int) -> list[list[RetrievedPassage]]:
        return [[RetrievedPassage(self.corpus[i], 1.0) for i in range(k)] for _ in prompts]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    texts = [" ".join(f"w{(7 * n + i) % 94}" for i in range(6)) for n in range(60)]
    passages = [Passage(f"p{n}", f"w{n % 94}", text) for n, text in enumerate(texts)]
    return Corpus.build(passages, tmp_path_factory.mktemp("corpus") / "corpus")


@pytest.fixture(scope="module")
def rows(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        rows, failures = measure(corpus, tmp_path_factory.mktemp("speed"), monkeypatch)
    assert failures == []
    return rows


def measure(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **settings: object
) -> tuple[list[dict], list[dict]]:
    monkeypatch.setattr(speed, "DenseRetriever", FirstPassages)
    monkeypatch.setattr(speed, "TextEncoder", lambda **settings: None)
    monkeypatch.setattr(torch, "compile", lambda call, **settings: call)  # takes minutes
    config = ImpRAGConfig(base_model="tiny", b=1, t=3, attention_score_bias=2.0)
    model = ImpRAGModel(tiny_lm(), config)
    given: dict = {"k": (1, 10), "codecs": ("fp32", "int8"), "compiled": True}
    return speed.benchmark(
        model,
        tiny_tokenizer(),
        corpus,
        tmp_path,
        runs=2,
        passages=12,
        **{"passage_tokens": (10,), **given, **settings},
    )


def test_an_arm_that_fails_is_left_out_and_the_others_are_kept(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object, *arguments: object) -> None:
        raise ImpRAGError("cannot\nbe made")

    def run_out(self: object, prompt: str, stamps: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(speed._Setting, "_full_arm", refuse)
    monkeypatch.setattr(speed_arms.InContextArm, "__call__", run_out)
    settings = {"k": (1,), "codecs": ("fp32", "no codec"), "compiled": False}
    rows, failures = measure(corpus, tmp_path, monkeypatch, **settings)
    assert [row["arm"] for row in rows] == [
        speed_arms.NONE,
        speed_arms.LIVE,
        speed_arms.stored("fp32"),
    ]
    assert {failure["arm"]: failure["error"] for failure in failures} == {
        speed_arms.FULL: "cannot be made",
        speed_arms.RAG: "out of memory",
        speed_arms.stored("no codec"): next(f["error"] for f in failures if "codec" in f["arm"]),
    }
    assert all(failure["k"] == 1 and failure["passage_tokens"] == 10 for failure in failures)
    assert ratios(rows) == {}


def write_teacher(folder: Path) -> Path:
    """A tiny random text encoder."""
    config = BertConfig(vocab_size=97, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    BertModel(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_the_quick_benchmark_measures_all_arms_and_codecs_and_draws_plots(
    tiny_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Only sizes differ from what users run: model, teacher, corpus and number of runs are tiny."""
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("matplotlib")
    texts = [" ".join(f"w{(7 * n + i) % 94}" for i in range(130)) for n in range(64)]
    passages = [Passage(f"p{n}", f"w{n}", text) for n, text in enumerate(texts)]
    corpus = Corpus.build(passages, tmp_path / "corpus")
    teacher = write_teacher(tmp_path / "teacher")
    monkeypatch.setattr("imprag.corpus.load_corpus", lambda name: corpus)
    monkeypatch.setattr("imprag.retrieval.dense._folder", lambda name: teacher)
    monkeypatch.setattr(speed, "QUICK_RUNS", 1)
    monkeypatch.setattr(speed_measure, "WARM_UP", 0)
    out = tmp_path / "bench"
    model = shutil.copytree(tiny_home / "model", tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["max_position_embeddings"] = 4096
    (model / "config.json").write_text(json.dumps(config))
    assert main(["bench", "--quick", "--model", str(model), "--out", str(out)]) == 0
    results = json.loads((out / "speed.json").read_text())
    assert results["failures"] == []
    assert [row["arm"] for row in results["rows"]] == [
        *(speed_arms.NONE, speed_arms.RAG, speed_arms.LIVE, speed_arms.FULL),
        *map(speed_arms.stored, ("bf16", "int8", "pq")),
        speed_arms.CODED,
    ]
    assert "ttft_stored_vs_rag" in results["ratios"]
    assert len(list(out.glob("*.svg"))) == len(list(out.glob("*.png"))) == 2
    assert "ImpRAG, stored pq" in capsys.readouterr().out


def test_a_length_that_cannot_be_measured_leaves_the_others(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = {"passage_tokens": (90, 10), "k": (1,), "codecs": (), "compiled": False}
    rows, failures = measure(corpus, tmp_path, monkeypatch, **lengths)
    assert {row["passage_tokens"] for row in rows} == {10}
    assert [(failed["arm"], failed["passage_tokens"]) for failed in failures] == [("all arms", 90)]
    assert "the corpus has only" in failures[0]["error"]


def test_a_benchmark_of_nothing_but_failures_is_refused(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(arm: object, prompt: str) -> None:
        raise RuntimeError("no luck")

    monkeypatch.setattr(speed_measure, "_once", fail)
    with pytest.raises(ImpRAGError, match="no arm could be measured: no luck"):
        measure(corpus, tmp_path, monkeypatch, k=(1,), codecs=(), compiled=False)


def test_every_arm_is_measured_for_every_setting(rows: list[dict], tmp_path: Path) -> None:
    arms = [
        speed_arms.NONE,
        speed_arms.RAG,
        speed_arms.LIVE,
        speed_arms.FULL,
        speed_arms.stored("fp32"),
        speed_arms.stored("int8"),
        speed_arms.RAG + speed_arms.COMPILED,
        speed_arms.stored("fp32") + speed_arms.COMPILED,
    ]
    assert [row["arm"] for row in rows] == arms * 2
    for row in rows:
        assert 0 < row["first_token"] < row["total"]
        assert row["tokens_per_second"] > 0
        assert row["runs"] == 2
    assert table(rows).count("\n") == len(rows) + 2
    write_plots(rows, tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 2
    first_token = (tmp_path / "first-token.svg").read_text()
    assert all(f">{length}<" in first_token for length in {row["k"] * 10 for row in rows})
    assert "math" not in first_token + (tmp_path / "tokens-per-second.svg").read_text()


def test_bytes_that_are_held_are_those_of_keys_and_values(rows: list[dict]) -> None:
    ten = {row["arm"]: row for row in rows if row["k"] == 10}
    a_layer = 2 * 2 * 16 * 4  # keys and values of one token in float32
    prompt = len(tiny_tokenizer()(speed_measure.PROMPTS[0])["input_ids"]) + speed_arms.NEW_TOKENS
    assert ten[speed_arms.NONE]["kv_bytes"] == prompt * 6 * a_layer
    assert ten[speed_arms.RAG]["kv_bytes"] == (prompt + 10 * 10) * 6 * a_layer
    for arm in (speed_arms.LIVE, speed_arms.FULL, speed_arms.stored("fp32")):
        assert ten[arm]["kv_bytes"] == prompt * 6 * a_layer + 10 * 10 * 3 * a_layer
    # A stored passage: its tokens at three layers, and a little for its place.
    assert ten[speed_arms.stored("fp32")]["memory_bytes"] == pytest.approx(
        10 * 3 * a_layer, rel=0.02
    )
    assert ten[speed_arms.LIVE]["memory_bytes"] is None


def test_ratios_are_shares_of_ordinary_rag() -> None:
    def row(arm: str, first_token: float, tokens_per_second: float, kv_bytes: int) -> dict:
        return {
            "arm": arm,
            "k": 10,
            "passage_tokens": 128,
            "first_token": first_token,
            "tokens_per_second": tokens_per_second,
            "kv_bytes": kv_bytes,
            "memory": 100,
        }

    rows = [
        row(speed_arms.RAG, 2.0, 10, 1000),
        row(speed_arms.LIVE, 1.0, 16, 450),
        row(speed_arms.stored("bf16"), 0.08, 15, 440),
        row(speed_arms.CODED, 0.1, 15, 70),
        row(speed_arms.RAG + speed_arms.COMPILED, 2.0, 16, 1000),
        row(speed_arms.stored("bf16") + speed_arms.COMPILED, 0.08, 20, 440),
    ]
    assert ratios(rows) == {
        "ttft_stored_vs_rag": 0.04,
        "ttft_live_vs_rag": 0.5,
        "decode_vs_rag": 1.5,
        "kv_bytes_vs_rag": 0.44,
        "memory_vs_rag": 1.0,
        "kv_bytes_pq_vs_rag": 0.07,
        "decode_compiled_vs_rag": 2.0,
        "decode_compiled_vs_rag_compiled": 1.25,
    }
    assert ratios([]) == {}


def test_growth_is_the_exponent() -> None:
    rows = [
        {"arm": arm, "k": k, "passage_tokens": 128, "first_token": 0.01 * (k * 128) ** power}
        for k in (1, 5, 20)
        for arm, power in (("linear", 1), ("square", 2), ("flat", 0))
    ]
    assert growth(rows) == pytest.approx({"linear": 1, "square": 2, "flat": 0})
    assert growth(rows[:3]) == {}


def test_a_corpus_of_too_little_text_is_named(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ImpRAGError, match="only 60 texts of 5 tokens; 100 are needed"):
        speed._long_passages(corpus, tiny_tokenizer(), tmp_path / "corpus", 5, 100)
