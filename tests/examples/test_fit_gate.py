"""The script that fits the built-in model's gate."""

import json
import random
from pathlib import Path
from typing import Any

import fit_gate
import pytest

from conftest import tiny_lm, tiny_tokenizer
from imprag.corpus import Corpus, Passage
from imprag.index.folder import IndexFolder
from imprag.model import ImpRAGConfig, ImpRAGModel, save_pretrained
from imprag.model.passage_encoder import PassageEncoder
from imprag.retrieval.gate import FEATURES, SCORES, Gate


def test_it_fits_a_gate_and_reports_on_prompts_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ImpRAGConfig(base_model="tiny", b=2, t=4, k=3, max_passage_tokens=16, trained=True)
    model, tokenizer = ImpRAGModel(tiny_lm(), config), tiny_tokenizer()
    save_pretrained(model, tokenizer, tmp_path / "model")
    drawn = random.Random(0)
    texts = [" ".join(f"w{drawn.randrange(94)}" for _ in range(8)) for _ in range(40)]
    corpus = Corpus.build([Passage(f"p{n}", "", t) for n, t in enumerate(texts)], tmp_path / "c")
    encoder = PassageEncoder(model, tokenizer)
    IndexFolder.build(corpus, encoder, tmp_path / "index", progress=False)
    rows: list[dict[str, Any]] = [
        {
            "id": f"q{n}",
            "input": " ".join(texts[n].split()[:5]),
            "output": [{"answer": "w1", "provenance": [{"passage_id": f"p{n}"}]}],
        }
        for n in range(30)
    ]
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"index": str(tmp_path / "index"), "tasks": [f"squad={questions}"]}
    (tmp_path / "gate.yaml").write_text(json.dumps({"one": source, "other": source}))
    monkeypatch.chdir(tmp_path)
    words = ["fit_gate.py", "gate.yaml", "--model", "model", "--out", "gate.json"]
    monkeypatch.setattr("sys.argv", words)
    fit_gate.main()
    printed = capsys.readouterr().out
    gate = json.loads((tmp_path / "gate.json").read_text())
    assert list(gate) == list(SCORES)
    assert all(list(weights) == list(FEATURES) for weights in gate.values())
    Gate.from_json(gate)
    (line,) = (row for row in printed.splitlines() if row.startswith("one squad  "))
    # The words of a passage find it, and the gate finds at least as many as the best score alone.
    first = [float(cell.partition("/")[0]) for cell in line.split()[2:]]
    assert first[1] > 0.9
    assert first[3] >= first[1] - 0.1 > first[0]
