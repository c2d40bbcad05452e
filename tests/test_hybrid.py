"""Hybrid retrieval in the pipeline: inside the prompt's pass, beside other retrieval, refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import tiny_lm, tiny_tokenizer
from imprag import ImpRAG
from imprag.cli import main
from imprag.corpus import Corpus, Passage
from imprag.errors import ImpRAGError
from imprag.index.folder import IndexFolder
from imprag.index.lexical import query_terms
from imprag.model import ImpRAGConfig, ImpRAGModel, save_pretrained
from imprag.model.passage_encoder import PassageEncoder
from imprag.retrieval.gate import SCORES
from imprag.retrieval.hybrid import HybridRetriever

PROMPTS = ["w1 w2 w3", "w9", "w5 w40 w41 w42 w43"]
GATE = {"implicit": {"bias": -0.5}, "lexical": {"bias": -1.0}, "attended": {"log_terms": 0.3}}
MORE: dict[str, Any] = {"max_new_tokens": 4, "stop": ()}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a gate, the same model without, and an index of 30 passages."""
    path = tmp_path_factory.mktemp("hybrid")
    values: dict[str, Any] = {"base_model": "tiny", "b": 2, "t": 4, "k": 3, "trained": True}
    for name, gate in (("model", GATE), ("plain", None)):
        config = ImpRAGConfig(**values, max_passage_tokens=16, gate=gate)
        model = ImpRAGModel(tiny_lm(), config)
        save_pretrained(model, tiny_tokenizer(), path / name)
    texts = [" ".join(f"w{(7 * n + 3 * i) % 94}" for i in range(8)) for n in range(30)]
    corpus = Corpus.build([Passage(f"p{n}", f"w{n}", t) for n, t in enumerate(texts)], path / "c")
    IndexFolder.build(
        corpus, PassageEncoder(model, tiny_tokenizer()), path / "index", progress=False
    )
    return path


def load(home: Path, name: str = "model", **settings: Any) -> ImpRAG:
    settings = {"retrieval": "hybrid", **settings}
    settings = {"index": home / "index", "dtype": "float32", **settings}
    return ImpRAG.from_pretrained(home / name, **settings)


def test_a_score_is_the_weighted_sum_of_the_implicit_and_the_lexical_scores(home: Path) -> None:
    rag = load(home)
    retriever = rag.retriever
    assert isinstance(retriever, HybridRetriever)
    implicit = {
        prompt: {found.row: found.score for found in row}
        for prompt, row in zip(
            PROMPTS, load(home, retrieval="implicit").retrieve(PROMPTS, 30), strict=True
        )
    }
    rows = np.arange(30)
    for prompt, ranking in zip(PROMPTS, retriever.rank(PROMPTS, 30), strict=True):
        counted = rag.index.lexical.scores(query_terms(prompt), rows)
        attended = rag.index.lexical.scores(ranking.terms, rows)
        alpha, beta, gamma = ranking.weights
        assert (alpha, beta) == pytest.approx((np.exp(-0.5), np.exp(-1)))
        assert gamma == pytest.approx(len(prompt.split()) ** 0.3)
        for place, found in enumerate(ranking.passages):
            assert found.row is not None
            parts = implicit[prompt][found.row], counted[found.row], attended[found.row]
            assert ranking.scores[:, place] == pytest.approx(parts, abs=1e-4)
            expected = np.dot(ranking.weights, parts)
            assert found.score == pytest.approx(expected, abs=1e-4)
            assert found.kind == "hybrid"
        assert sorted(found.row for found in ranking.passages) == rows.tolist()


def test_retrieval_inside_the_pass_finds_what_retrieval_alone_finds(home: Path) -> None:
    rag = load(home)
    alone = rag.retrieve(PROMPTS)
    for batch_size, beams in ((8, 1), (1, 1), (8, 3)):
        answers = rag.generate(PROMPTS, num_beams=beams, batch_size=batch_size, **MORE)
        for answer, found in zip(answers, alone, strict=True):
            assert [one.row for one in answer.passages] == [one.row for one in found]
            scores = [one.score for one in answer.passages]
            assert scores == pytest.approx([one.score for one in found], abs=1e-3)


def test_hybrid_scores_bias_attention_and_lexical_ones_do_not(home: Path) -> None:
    weighing = load(home, attention_score_bias=1e4)
    for answer in weighing.generate(PROMPTS, **MORE):
        first = load(home).ask(answer.prompt, passages=answer.passages[:1], **MORE)
        assert answer.text == first.text
    lexical = load(home, attention_score_bias=1e4, retrieval="lexical")
    plain = load(home, retrieval="lexical")
    assert [a.text for a in lexical.generate(PROMPTS, **MORE)] == [
        a.text for a in plain.generate(PROMPTS, **MORE)
    ]
    assert {p.kind for a in plain.generate(PROMPTS, **MORE) for p in a.passages} == {"lexical"}


def test_a_model_without_a_gate_weighs_both_scores_alike(home: Path) -> None:
    choices: dict[int, dict[str, Any]] = {1: {}, 2: {"lexical_weight": 2.0}}
    for weight, settings in choices.items():
        retriever = load(home, "plain", **settings).retriever
        assert isinstance(retriever, HybridRetriever)
        assert retriever.rank(PROMPTS[:1], 1)[0].weights == pytest.approx((1, 0, weight))


def test_unknown_words_leave_the_implicit_ranking(home: Path) -> None:
    rag, own = load(home), load(home, retrieval="implicit")
    for prompt in ("?!", "…", "zzz " * 3):
        rows = [[one.row for one in one.retrieve([prompt])[0]] for one in (rag, own)]
        assert rows[0] == rows[1]


def test_an_index_without_a_lexical_part(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "index", tmp_path / "index")
    shutil.rmtree(tmp_path / "index" / "lexical")
    assert load(home, index=tmp_path / "index", retrieval="implicit").retrieve(PROMPTS)
    for retrieval in (None, "hybrid", "lexical"):
        asked = ImpRAG.from_pretrained(home / "model", tmp_path / "index", retrieval=retrieval)
        with pytest.raises(ImpRAGError, match="add it with: imprag index .* --out") as caught:
            asked.retrieve(PROMPTS)
    command = str(caught.value).partition("with: imprag ")[2].partition(" (the")[0]
    before = sorted((tmp_path / "index" / "index").iterdir())
    assert main(command.replace("MODEL", str(home / "model")).split()) == 0
    assert sorted((tmp_path / "index" / "index").iterdir()) == before
    again = ImpRAG.from_pretrained(home / "model", tmp_path / "index", retrieval="hybrid")
    assert again.retrieve(PROMPTS) == load(home).retrieve(PROMPTS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"retrieval": "bm25"}, "unknown retriever 'bm25'; known are implicit, lexical, hybrid"),
        ({"retrieval": "hybrid", "lexical_weight": 0}, "must be positive"),
        ({"retrieval": "implicit", "lexical_weight": 1}, "for hybrid retrieval, not for implicit"),
    ],
)
def test_bad_settings_are_refused(home: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ImpRAGError, match=message):
        load(home, **settings)


@pytest.mark.parametrize(
    ("name", "settings", "retrieval"),
    [
        ("model", {}, "hybrid"),
        ("plain", {}, "implicit"),
        ("plain", {"lexical_weight": 2.0}, "hybrid"),
        ("model", {"retrieval": "implicit"}, "implicit"),
    ],
)
def test_a_model_with_a_gate_retrieves_by_hybrid_retrieval(
    home: Path, name: str, settings: dict[str, Any], retrieval: str
) -> None:
    rag = ImpRAG.from_pretrained(home / name, home / "index", **settings)
    assert rag.retrieval == retrieval
    found = rag.ask("w1 w2", **MORE).passages
    (alone,) = load(home, name, **settings | {"retrieval": retrieval}).retrieve(["w1 w2"])
    assert {one.kind for one in found} == {retrieval}
    assert [one.score for one in found] == pytest.approx([one.score for one in alone], abs=1e-3)


def test_search_explains_its_scores(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = ["--model", str(home / "model"), "--index", str(home / "index"), "--k", "2"]
    hybrid = [*source, "--retrieval", "hybrid"]
    assert main(["search", "w1 w2 w3", *hybrid, "--explain", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert list(printed["weights"]) == list(SCORES)
    assert set(printed["terms"]) == {"w1", "w2", "w3"}
    for passage in printed["passages"]:
        total = sum(printed["weights"][name] * passage["scores"][name] for name in SCORES)
        assert passage["score"] == pytest.approx(total, abs=1e-4)
    assert main(["search", "w1 w2 w3", *source, "--explain"]) == 0
    text = capsys.readouterr().out
    assert "weights: implicit 0.607, lexical 0.368, attended 1.390" in text
    assert "words: w" in text
    assert "(implicit " in text
    for retrieval in ("implicit", "lexical"):
        assert main(["search", "w1", *source, "--explain", "--retrieval", retrieval]) == 2
        assert "add --retrieval hybrid" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--retrieval", "lexical", "--lexical-weight", "2"], "has no effect with --retrieval"),
        (["--retrieval", "hybrid", "--lexical-weight", "-1"], "must be positive"),
        (["--retrieval", "implicit", "--lexical-weight", "1"], "has no effect with --retrieval"),
        (["--retriever", "bm25"], "--retriever was removed: use --retrieval"),
    ],
)
def test_the_command_line_refuses(
    home: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ["--model", str(home / "model"), "--index", str(home / "index")]
    assert main(["search", "w1 w2", *source, *words]) == 2
    assert message in capsys.readouterr().err


def test_ask_answers_with_any_retrieval(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = ["--model", str(home / "model"), "--index", str(home / "index"), "--json"]
    for retrieval in ("hybrid", "implicit", "lexical"):
        assert main(["ask", "w1 w2", *source, "--retrieval", retrieval]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert {passage["kind"] for passage in printed["passages"]} == {retrieval}


def test_prompts_of_any_kind_are_answered(home: Path) -> None:
    rag = load(home)
    prompts = ["w1", "w1 " * 300, "法国的首都在哪里？", "…", "w7\nw8"]
    for answer in rag.generate(prompts, **MORE):
        assert len(answer.passages) == 3
        assert torch.isfinite(torch.tensor([one.score for one in answer.passages])).all()


def test_info_shows_and_verifies_the_lexical_index(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = tmp_path / "index"
    shutil.copytree(home / "index", index)
    assert main(["info", str(index), "--verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lexical"]["count"] == 30
    file = next((index / "lexical").glob("*.idx"))
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)
    assert main(["info", str(index), "--verify"]) == 2
    assert f"{file} is damaged (its checksum differs)" in capsys.readouterr().err


def test_lexical_search_uses_the_index_of_the_folder(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMPRAG_CACHE", str(tmp_path))
    command = ["search", "w9", "--model", str(home / "model"), "--index", str(home / "index")]
    assert main([*command, "--retrieval", "lexical"]) == 0
    assert not list(tmp_path.iterdir())
