"""The script that fits the built-in model's confidence."""

import json
from pathlib import Path

import fit_confidence
import pytest

from conftest import tiny_lm, tiny_tokenizer
from imprag.corpus import Corpus, Passage
from imprag.evaluation.run_folder import RunFolder
from imprag.index.folder import IndexFolder
from imprag.model import ImpRAGConfig, ImpRAGModel, save_pretrained
from imprag.model.confidence import FEATURES
from imprag.model.passage_encoder import PassageEncoder
from imprag.pipeline import ImpRAG


def test_it_fits_weights_that_a_model_abstains_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ImpRAGConfig(base_model="tiny", b=1, t=3, k=3, max_passage_tokens=16, trained=True)
    model, tokenizer = ImpRAGModel(tiny_lm(), config), tiny_tokenizer()
    save_pretrained(model, tokenizer, tmp_path / "model")
    texts = [" ".join(f"w{(5 * n + i) % 94}" for i in range(8)) for n in range(20)]
    corpus = Corpus.build([Passage(f"p{n}", "", t) for n, t in enumerate(texts)], tmp_path / "c")
    encoder = PassageEncoder(model, tokenizer)
    index = IndexFolder.build(corpus, encoder, tmp_path / "index", progress=False)
    rag = ImpRAG(model, tokenizer, index)
    # Right are the answers to every other question.
    prompts = [f"Q: w{n} w{n + 3} A:" for n in range(12)]
    answers = [one.text for one in rag.generate(prompts, raw=True, max_new_tokens=32)]
    rows = [
        {
            "id": f"q{n}",
            "input": f"w{n} w{n + 3}",
            "output": [
                {
                    "answer": answers[n] if n % 2 else "w93 w1 w93",
                    "provenance": [{"passage_id": f"p{n}"}],
                }
            ],
        }
        for n in range(12)
    ]
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    words = ["fit_confidence.py", "--tasks", f"nq={questions}", "--model", "model"]
    words += ["--index", "index", "--limit", "12", "--runs", "runs", "--out", "confidence.json"]
    monkeypatch.setattr("sys.argv", words)
    fit_confidence.main()
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in printed] == ["answerable", "unanswerable"]
    measured = json.loads(printed[0].partition(": ")[2])
    assert measured["n"] == 12
    assert measured["right"] == pytest.approx(0.5, abs=0.1)
    monkeypatch.setattr("sys.argv", [*words, "--also", "runs"])
    fit_confidence.main()
    again = json.loads(capsys.readouterr().out.splitlines()[0].partition(": ")[2])
    assert again["n"] == 24
    weights = json.loads((tmp_path / "confidence.json").read_text())
    assert list(weights) == list(FEATURES)
    for prediction in RunFolder.open("runs/unanswerable").predictions():
        read = {one["id"] for one in prediction["passages"]}
        assert len(read) == 3
        assert not read & {id for ids in prediction["gold"] for id in ids}
    trained = ImpRAG.from_pretrained("model", "index", confidence=weights)
    found = trained.generate(prompts, raw=True, min_confidence=0.5)
    assert all(0 < (one.confidence or 0) < 1 for one in found)
    assert all(one.abstained == ((one.confidence or 0) < 0.5) for one in found)
