"""A tiny model over a tiny index, end to end."""

import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import tiny_lm, tiny_tokenizer
from imprag.corpus import Corpus, Passage
from imprag.errors import ImpRAGError
from imprag.generation import reading, until_stop
from imprag.index.folder import IndexFolder
from imprag.kv_cache import RamStore
from imprag.kv_cache.codecs.base import untrained_codec
from imprag.kv_cache.manifest import states_fingerprint
from imprag.model import ImpRAGConfig, ImpRAGModel
from imprag.model.text import prompt_batch
from imprag.pipeline import ImpRAG

PASSAGES = [
    Passage(f"p{n}", f"w{n}", " ".join(f"w{(7 * n + i) % 94}" for i in range(4 + n)))
    for n in range(12)
]
PROMPTS = ["w1 w2 w3", "w9", "w5 w40 w41 w42 w43"]


def tiny_rag(folder: Path | None, seed: int = 0, **settings: object) -> ImpRAG:
    values = {"b": 1, "t": 3, "k": 3, "max_passage_tokens": 16, **settings}
    model = ImpRAGModel(tiny_lm(seed=seed), ImpRAGConfig(base_model="tiny", **values))
    rag = ImpRAG(model, tiny_tokenizer())
    if folder is None:
        return rag
    if not folder.exists():
        corpus = Corpus.build(PASSAGES, folder.parent / "corpus")
        IndexFolder.build(corpus, rag.encoder, folder, progress=False)
    return ImpRAG(model, tiny_tokenizer(), IndexFolder.open(folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rag") / "index"
    tiny_rag(path)
    return path


def test_retrieval_is_the_inner_product_of_the_embeddings(folder: Path) -> None:
    rag = tiny_rag(folder)
    found = rag.retrieve(PROMPTS, k=5)
    passages = rag.encoder(PASSAGES)
    for prompt, row in zip(PROMPTS, found, strict=True):
        ids, mask = prompt_batch(rag.tokenizer, [prompt], 100, rag.model.device)
        with torch.no_grad():
            scores = passages @ rag.model.query_embeddings(ids, mask)[0].numpy()
        best = np.argsort(-scores)[:5]
        assert [f.passage.id for f in row] == [f"p{i}" for i in best]
        np.testing.assert_allclose([f.score for f in row], scores[best], rtol=2e-2, atol=2e-2)
        assert row[0].passage == PASSAGES[best[0]]


def test_prompts_of_like_length_share_a_batch(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rag = tiny_rag(folder)
    prompts = ["w1", "w2 w3 w4 w5 w6", "w7", "w8 w9 w10 w11 w12"]
    shapes = []

    def noting(*arguments):
        ids, mask = prompt_batch(*arguments)
        shapes.append(bool(mask.all()))
        return ids, mask

    monkeypatch.setattr("imprag.generation.batch.prompt_batch", noting)
    answers = rag.generate(prompts, max_new_tokens=2, stop=(), batch_size=2)
    assert shapes == [True, True]
    assert [answer.prompt for answer in answers] == prompts


def test_a_plain_question_equals_the_same_prompt_in_the_template(folder: Path) -> None:
    plain, trained = tiny_rag(folder), tiny_rag(folder, question_template="w90 {question} w91")
    arguments: dict[str, Any] = {"max_new_tokens": 5, "stop": ()}
    typed = ["w1 w2", "w3 w4:"]
    by_hand = ["w90 w1 w2 w91", "w3 w4:"]
    answers = trained.generate(iter(typed), **arguments)
    expected = plain.generate(by_hand, **arguments)
    assert [a.prompt for a in answers] == typed
    assert [a.model_prompt for a in answers] == [a.model_prompt for a in expected] == by_hand
    assert [a.text for a in answers] == [a.text for a in expected]
    assert trained.retrieve(typed) == plain.retrieve(by_hand)
    assert "".join(trained.stream(typed[0], **arguments)).strip() == expected[0].text
    given = expected[0].passages
    assert trained.ask(typed[0], passages=given, **arguments).text == expected[0].text
    assert pickle.loads(pickle.dumps(answers[0])) == answers[0]

    fingerprints = {states_fingerprint(one.model, one.tokenizer) for one in (plain, trained)}
    assert len(fingerprints) == 1  # a stored KV cache stays valid

    raw = [answer.text for answer in trained.generate(typed, raw=True, **arguments)]
    assert raw == [answer.text for answer in plain.generate(typed, **arguments)]
    assert raw[0] != answers[0].text
    assert trained.retrieve(typed, raw=True) == plain.retrieve(typed)
    assert "".join(trained.stream(typed[0], raw=True, **arguments)).strip() == raw[0]


def test_answers_read_what_was_retrieved(folder: Path) -> None:
    rag = tiny_rag(folder)
    answers = rag.generate(PROMPTS, max_new_tokens=5, stop=())
    for answer, found in zip(answers, rag.retrieve(PROMPTS), strict=True):
        assert [f.passage.id for f in answer.passages] == [f.passage.id for f in found]
        again = rag.ask(answer.prompt, passages=found, max_new_tokens=5, stop=())
        assert again.text == answer.text
        assert again.passages == found
        assert set(answer.timings) == {"query", "search", "encode", "generate", "total"}
        parts = sum(value for name, value in answer.timings.items() if name != "total")
        assert math.isclose(parts, answer.timings["total"], rel_tol=1e-6)
    without = rag.generate(PROMPTS, k=0, max_new_tokens=5, stop=())
    assert [a.passages for a in without] == [[], [], []]
    assert [a.text for a in without] != [a.text for a in answers]


def test_what_scores_better_is_read_more(folder: Path) -> None:
    plain, weighing = tiny_rag(folder), tiny_rag(folder, attention_score_bias=1e4)
    arguments: dict[str, Any] = {"max_new_tokens": 5, "stop": ()}
    answers = weighing.generate(PROMPTS, **arguments)
    assert [a.text for a in answers] != [a.text for a in plain.generate(PROMPTS, **arguments)]
    for answer in answers:
        first = plain.ask(answer.prompt, passages=answer.passages[:1], **arguments)
        assert len(answer.passages) == 3
        assert answer.text == first.text
        again = weighing.ask(answer.prompt, passages=answer.passages, **arguments)
        assert again.text == answer.text
    weighing.use_kv_cache(RamStore(untrained_codec("fp32", 16), 10**6))
    assert [a.text for a in weighing.generate(PROMPTS, **arguments)] == [a.text for a in answers]


def test_passages_with_a_negligible_bias_are_not_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rag = tiny_rag(folder, attention_score_bias=1.0)
    found = [
        [replace(one, score=score) for one, score in zip(row, scores, strict=True)]
        for row, scores in zip(
            rag.retrieve(PROMPTS), [(9, 0, 8), (1, 1, 1), (0, -50, 0)], strict=True
        )
    ]
    read = reading.passage_kv(rag, found)
    assert [[bool(tokens) for tokens in row] for row in read.lengths] == [
        [True, True, True],
        [True, True, True],
        [True, False, True],
    ]
    monkeypatch.setattr(reading, "NEGLIGIBLE", -4.0)
    read = reading.passage_kv(rag, found)
    assert list(map(bool, read.lengths[0])) == [True, False, True]
    assert read.passage_bias == [[0, -9, -1], [0, 0, 0], [0, -50, 0]]
    # What is not read takes no time, and the answer is that of the others alone.
    arguments: dict[str, Any] = {"max_new_tokens": 5, "stop": ()}
    answers = rag.generate(PROMPTS, passages=found, **arguments)
    assert sum(one.kv_misses for one in answers[:1]) == 7
    fewer = [[found[0][0], found[0][2]], found[1], [found[2][0], found[2][2]]]
    alone = rag.generate(PROMPTS, passages=fewer, **arguments)
    assert [one.text for one in answers] == [one.text for one in alone]
    assert [len(one.passages) for one in answers] == [3, 3, 3]
    # Passages in one sequence have positions that depend on all of them.
    segmented = tiny_rag(folder, attention_score_bias=1.0, passage_encoding="segmented")
    assert all(all(row) for row in reading.passage_kv(segmented, found).lengths)


@pytest.mark.parametrize("kind", ["lexical", "dense", "given", "of a plug-in"])
def test_only_the_models_own_scores_bias_attention(folder: Path, kind: str) -> None:
    plain, weighing = tiny_rag(folder), tiny_rag(folder, attention_score_bias=1e4)
    arguments: dict[str, Any] = {"max_new_tokens": 5, "stop": ()}
    own = plain.retrieve(PROMPTS)
    assert {one.kind for row in own for one in row} == {"implicit"}
    others = [[replace(one, kind=kind) for one in row] for row in own]
    expected = [answer.text for answer in plain.generate(PROMPTS, passages=own, **arguments)]
    biased = [answer.text for answer in weighing.generate(PROMPTS, passages=own, **arguments)]
    assert biased != expected
    # A prompt's scores count if all of them are the model's own, whatever the others of its batch.
    for passages, wanted in (
        (others, expected),
        ([others[0], own[1], others[2]], [expected[0], biased[1], expected[2]]),
        ([[others[0][0], *own[0][1:]], *own[1:]], [expected[0], *biased[1:]]),
    ):
        found = weighing.generate(PROMPTS, passages=passages, **arguments)
        assert [answer.text for answer in found] == wanted


@pytest.mark.parametrize("encoding", ["independent", "segmented", "full"])
def test_batches_do_not_change_answers(folder: Path, encoding: str) -> None:
    rag = tiny_rag(folder, passage_encoding=encoding)
    together = rag.generate(PROMPTS, max_new_tokens=5, stop=())
    alone = [rag.ask(prompt, max_new_tokens=5, stop=()) for prompt in PROMPTS]
    pairs = rag.generate(PROMPTS, max_new_tokens=5, stop=(), batch_size=2)
    assert [a.text for a in together] == [a.text for a in alone] == [a.text for a in pairs]


def test_sampling_beams_and_streaming(folder: Path) -> None:
    rag = tiny_rag(folder)
    greedy = rag.ask(PROMPTS[0], max_new_tokens=6, stop=())
    assert "".join(rag.stream(PROMPTS[0], max_new_tokens=6, stop=())).strip() == greedy.text
    samples = []
    for _ in range(2):
        torch.manual_seed(3)
        samples.append(rag.ask(PROMPTS[0], max_new_tokens=6, stop=(), do_sample=True).text)
    assert samples[0] == samples[1]
    beams = rag.ask(PROMPTS[0], max_new_tokens=6, num_beams=3, stop=())
    assert [f.passage for f in beams.passages] == [f.passage for f in greedy.passages]
    with pytest.raises(ImpRAGError, match="one answer for each prompt"):
        rag.ask(PROMPTS[0], num_return_sequences=2)


def test_stop_strings_end_answers(folder: Path) -> None:
    rag = tiny_rag(folder)
    whole = rag.ask(PROMPTS[2], max_new_tokens=8, stop=()).text.split()
    stop = next(word for word in whole[1:] if word != whole[0])
    answer = rag.ask(PROMPTS[2], max_new_tokens=8, stop=(stop + " ", stop)).text
    assert answer.split() == whole[: whole.index(stop)]
    streamed = "".join(rag.stream(PROMPTS[2], max_new_tokens=8, stop=(stop + " ", stop)))
    assert streamed.split() == answer.split()


@pytest.mark.parametrize(
    ("pieces", "stop", "text"),
    [
        (["a", "b", "c"], ["bc"], "a"),
        (["a", "b", "d"], ["bc"], "abd"),
        (["ab\nc"], ["\n", "b"], "a"),
        (["x", "<", "<", "e"], ["<e"], "x<"),
        (["ab"], [], "ab"),
        (["one <"], ["<end>"], "one <"),
        (["\n", " \n", "a", "\n", "b"], ["\n"], "a"),
        (["\n"], ["\n"], ""),
    ],
)
def test_textuntil_stop_a_stop_string(pieces: list[str], stop: list[str], text: str) -> None:
    assert "".join(until_stop(pieces, stop)) == text


def test_errors_of_the_stream_reach_the_caller(folder: Path) -> None:
    rag = tiny_rag(folder)
    with pytest.raises(ImpRAGError, match="k is 40"):
        list(rag.stream(PROMPTS[0], k=40))


def test_what_cannot_be_answered(folder: Path) -> None:
    rag = tiny_rag(folder)
    with pytest.raises(ImpRAGError, match="prompt 2 is empty"):
        rag.generate(["w1", " "])
    with pytest.raises(ImpRAGError, match="the prompt is empty"):
        rag.retrieve([""])
    with pytest.raises(ImpRAGError, match="k is 13"):
        rag.ask("w1", k=13)
    with pytest.raises(ImpRAGError, match="must not be negative"):
        rag.ask("w1", k=-1)
    with pytest.raises(ImpRAGError, match="only 944 fit"):  # 1024 - 3 * 16 - 32
        rag.ask(" ".join(["w1"] * 945))
    with pytest.raises(ImpRAGError, match="2 prompts, but passages for 1"):
        rag.generate(["w1", "w2"], passages=[[]])
    with pytest.raises(ImpRAGError, match="imprag index CORPUS"):
        tiny_rag(None).ask("w1")
    assert tiny_rag(None).ask("w1", k=0, max_new_tokens=2).passages == []


def test_an_index_of_another_model_is_refused(folder: Path) -> None:
    with pytest.raises(ImpRAGError, match="model"):
        tiny_rag(folder, seed=1)
    with pytest.raises(ImpRAGError, match="model"):
        tiny_rag(folder, max_passage_tokens=15)


def test_saved_models_load_with_their_index(folder: Path, tmp_path: Path) -> None:
    rag = tiny_rag(folder)
    rag.save_pretrained(tmp_path / "model")
    loaded = ImpRAG.from_pretrained(tmp_path / "model", index=folder, dtype="float32", device="cpu")
    expected = rag.generate(PROMPTS, max_new_tokens=5)
    assert [a.text for a in loaded.generate(PROMPTS, max_new_tokens=5)] == [
        a.text for a in expected
    ]


def test_push_to_hub_uploads_what_is_saved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: dict[str, object] = {}

    class Hub:
        def create_repo(self, name: str, **settings: object) -> None:
            uploaded["repository"] = (name, settings)

        def upload_folder(self, repo_id: str, folder_path: Path) -> object:
            uploaded["files"] = {file.name for file in folder_path.iterdir()}
            return type("Commit", (), {"commit_url": "hub/commit"})

    monkeypatch.setattr("imprag.model.load.HfApi", Hub)
    assert tiny_rag(folder).push_to_hub("me/model") == "hub/commit"
    assert uploaded["repository"] == ("me/model", {"private": True, "exist_ok": True})
    assert {"imprag.json", "model.safetensors", "tokenizer.json"} <= uploaded["files"]
