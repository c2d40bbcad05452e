"""``imprag adapt`` on a tiny model, of whole weights and with an adapter."""

import dataclasses
import json
import threading
import time
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from peft import LoraConfig

from conftest import tiny_lm, tiny_tokenizer
from imprag.cli import main
from imprag.cli.adapt import Kind, _notes
from imprag.io.locking import only_builder
from imprag.model import ImpRAGConfig, ImpRAGModel, load_pretrained, save_pretrained
from imprag.model.peft_adapters import add_adapter
from imprag.tasks.self_supervised import FROM_PASSAGES
from imprag.training.adapt import SourceRecall
from imprag.training.adapt_run import KINDS


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module", params=["whole", "adapter"])
def home(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder with a model, an index and questions."""
    path = tmp_path_factory.mktemp("home")
    lm, base = tiny_lm(), "tiny"
    if request.param == "adapter":
        base = str(path / "base")
        lm.save_pretrained(base)
        tiny_tokenizer().save_pretrained(base)
        add_adapter(lm, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    settings: Any = {"b": 1, "t": 3, "k": 2, "max_passage_tokens": 16, "confidence": {"bias": 1.0}}
    config = ImpRAGConfig(base_model=base, question_template="{question} =", **settings)
    save_pretrained(ImpRAGModel(lm.eval(), config), tiny_tokenizer(), path / "model")
    passages = [{"id": f"p{n}", "title": f"w{n}", "text": f"w{n + 30} w7"} for n in range(30)]
    questions = [
        {
            "id": f"q{n}-{m}",
            "input": f"w{m + 60} w{n}",
            "output": [{"answer": "w1", "provenance": [{"passage_id": f"p{n}"}]}],
        }
        for n in range(30)
        for m in range(2)
    ]
    for name, rows in (("corpus", passages), ("nq", questions)):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    index = ["--out", path / "index", "--model", path / "model"]
    assert run("index", path / "corpus.jsonl", *index) == 0
    return path


def test_notes_say_which_figures_mean_little() -> None:
    def recall(source: str, prompts: int) -> SourceRecall:
        return SourceRecall(source, prompts, (0.0, 0.0), (1.0, 1.0))

    (few, made) = _notes([recall("title", 3), recall("lookup", 50)], asked=False)
    assert few == "fewer than 50 prompts were held back of title (3): these figures mean little"
    assert "questions that people ask, given by --tasks, tell more about" in made
    assert _notes([recall("nq", 500)], asked=True) == []


def adapt(home: Path, out: Path, *arguments: object) -> int:
    given = ["--model", home / "model", "--index", home / "index", "--out", out]
    return run("adapt", *given, *arguments)


def test_a_model_is_made_that_searches_the_same_index(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, tasks = tmp_path / "adapted", ["--tasks", f"nq={home / 'nq.jsonl'}"]
    assert adapt(home, out, *tasks, "--steps", 30, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["model"] == str(out)
    assert shown["notes"] == [
        "fewer than 50 prompts were held back of nq (3): these figures mean little"
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["adapted"]
    ((source, prompts, before, after),) = (one.values() for one in shown["recall"])
    assert (source, prompts, len(before), len(after)) == ("nq", 3, 2, 2)
    weights = [load_pretrained(path, "float32", "cpu")[0].lm for path in (home / "model", out)]
    changed = [
        name
        for name, weight in weights[1].state_dict().items()
        if not torch.allclose(weight, weights[0].state_dict()[name], atol=1e-6)
    ]
    assert changed == ["model.layers.1.self_attn.q_proj.weight"]
    assert (out / "adapter_config.json").exists() == (home / "base").exists()
    # The confidence was fitted with other scores.
    own = dataclasses.replace(ImpRAGConfig.load(home / "model"), confidence=None)
    assert ImpRAGConfig.load(out) == own
    assert run("search", "w60 w3", "--model", out, "--index", home / "index", "--k", 2) == 0
    assert "   2. " in capsys.readouterr().out
    # Without --index, the model knows which one it was fitted to.
    assert run("ask", "w60 w3", "--model", out, "--k", 2) == 0
    shown = capsys.readouterr()
    assert "   2. " in shown.out
    assert f"retrieving from {home / 'index'}, which {out} was fitted to" in shown.err
    (home / "index").rename(home / "moved")
    assert run("search", "w60 w3", "--model", out) == 2
    assert f"was fitted to {home / 'index'}, which no longer exists" in capsys.readouterr().err
    (home / "moved").rename(home / "index")

    assert adapt(home, out, *tasks) == 2
    assert "exists already; delete it or choose another folder" in capsys.readouterr().err
    again = ["adapt", "--model", out, "--index", home / "index", "--out", tmp_path / "again"]
    assert run(*again, *tasks, "--steps", 2, "--wise-ft-alpha", 0.5) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("| nq ")


def test_all_kinds_that_passages_give_can_be_asked_for() -> None:
    assert set(get_args(Kind)) == set(KINDS) == set(FROM_PASSAGES)


def test_passages_that_give_no_prompts(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert adapt(home, tmp_path / "out") == 2
    assert "give too few prompts; bring some of your own by --tasks" in capsys.readouterr().err
    assert adapt(home, tmp_path / "out", "--synthetic", "question") == 2
    assert "the source 'question' has too few prompts" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_kinds_that_a_small_corpus_hardly_gives_are_left_out(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {
        "Chad": "Chad is a landlocked country in Africa. N'Djamena is the capital of Chad.",
        "Niger": "Niger is named for a river.",
        "Mali": "Bamako is the capital of Mali.",
    }
    passages = [{"id": title, "title": title, "text": text} for title, text in texts.items()]
    corpus, index = tmp_path / "few.jsonl", tmp_path / "index"
    corpus.write_text("".join(json.dumps(passage) + "\n" for passage in passages))
    assert run("index", corpus, "--model", home / "model", "--out", index) == 0
    command = ["adapt", "--model", home / "model", "--index", index, "--steps", 1]
    assert run(*command, "--out", tmp_path / "out", "--max-rank", 4, "--json") == 0
    shown = capsys.readouterr()
    has_adapter = (home / "model" / "adapter_config.json").exists()
    assert ("note: max_rank has no effect" in shown.err) is not has_adapter
    assert [one["source"] for one in json.loads(shown.out)["recall"]] == ["keywords", "title"]
    assert "note: cloze left out: the passages give too few prompts" in shown.err
    assert run(*command, "--out", tmp_path / "asked", "--synthetic", "cloze") == 2
    assert "'cloze' has too few prompts" in capsys.readouterr().err


def test_data_without_tasks_is_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert adapt(home, tmp_path / "out", "--data", tmp_path) == 2
    assert "--data has no effect without --tasks" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_second_call_for_the_same_folder_waits_and_is_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    codes: list[int] = []
    with only_builder(out):
        second = threading.Thread(target=lambda: codes.append(adapt(home, out)))
        second.start()
        while f"another process is building {out}" not in capsys.readouterr().err:
            assert second.is_alive()
            time.sleep(0.01)
        out.mkdir()
        (out / "config.json").write_text("{}")
    second.join()
    assert codes == [2]
    assert f"{out} exists already; delete it or choose another folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
