"""The command line, run in this process on a tiny model, and once as a real process."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import tiny_lm, tiny_tokenizer
from imprag.cli import app, main, removed
from imprag.model import ImpRAGConfig, ImpRAGModel, save_pretrained

WORDS = [" ".join(f"w{(5 * n + i) % 94}" for i in range(6)) for n in range(9)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a corpus file and an index made by the command line."""
    path = tmp_path_factory.mktemp("home")
    config = ImpRAGConfig(base_model="tiny", b=1, t=3, k=2, max_passage_tokens=16)
    save_pretrained(ImpRAGModel(tiny_lm(), config), tiny_tokenizer(), path / "model")
    lines = [{"id": f"p{n}", "title": f"w{n}", "text": text} for n, text in enumerate(WORDS)]
    (path / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert (
        run("index", path / "corpus.jsonl", "--out", path / "index", "--model", path / "model") == 0
    )
    return path


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def ask(home: Path, *arguments: object) -> int:
    model = () if "--model" in arguments else ("--model", home / "model")
    return run(*arguments, *model, "--index", home / "index", "--dtype", "float32")


def test_ask_prints_passages_and_answer(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(home, "ask", "w1 w2", "--k", 3, "--max-new-tokens", 4) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("w1 w2\n")
    assert "   3. " in captured.out
    assert "\nanswer: w" in captured.out
    assert "not been trained" in captured.err


def test_ask_json(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(home, "ask", "w1 w2", "--json", "--max-new-tokens", 4) == 0
    (line,) = capsys.readouterr().out.splitlines()
    answer = json.loads(line)
    assert set(answer) == {
        "prompt",
        "model_prompt",
        "answer",
        "kv_cache",
        "passages",
        "timings",
        "retrievals",
    }
    assert answer["kv_cache"] == {"hits": 0, "misses": 2}
    assert answer["prompt"] == "w1 w2"
    assert len(answer["passages"]) == 2
    assert set(answer["passages"][0]) == {"id", "title", "text", "row", "score", "kind"}
    assert answer["passages"][0]["id"] == f"p{answer['passages'][0]['row']}"
    assert answer["passages"][0]["kind"] == "implicit"
    assert answer["passages"][0]["text"] in WORDS
    assert answer["passages"][0]["score"] >= answer["passages"][1]["score"]
    assert answer["timings"]["total"] > 0


def test_ask_cites_the_passages_that_carried_the_answer(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("ask", "w1 w2", "--k", 3, "--max-new-tokens", 4, "--cite")
    assert ask(home, *options, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    attribution = found["attribution"]
    assert set(attribution) == {"shares", "tokens", "own", "carried_by"}
    assert len(attribution["shares"]) == 3
    assert sum(attribution["shares"]) + attribution["own"] == pytest.approx(1)
    assert "".join(token["text"] for token in attribution["tokens"]) == found["answer"]
    assert ask(home, *options) == 0
    lines = capsys.readouterr().out.rstrip().split("\n")
    start = next(n for n, line in enumerate(lines) if line.startswith("answer: "))
    numbers = [f"[{n + 1}]" for n in attribution["carried_by"]]
    assert lines[start] == " ".join(["answer:", found["answer"], *numbers])
    assert lines[start + 1 :] == [
        *(
            f"  [{n + 1}] {attribution['shares'][n]:.1%} {found['passages'][n]['title']}"
            for n in attribution["carried_by"]
        ),
        f"  own text {attribution['own']:.1%}",
    ]


def test_ask_abstains_below_the_least_confidence(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(home / "model", model)
    settings = json.loads((model / "imprag.json").read_text())
    (model / "imprag.json").write_text(json.dumps({**settings, "confidence": {"bias": 0.0}}))
    options = ("ask", "w1 w2", "--max-new-tokens", 4, "--model", model)
    assert ask(home, *options, "--min-confidence", 0.5, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["confidence"] == 0.5
    assert found["evidence"]["bias"] == 1
    assert found["abstained"] is False
    assert found["answer"].startswith("w")
    assert ask(home, *options, "--min-confidence", 0.6) == 0
    assert "\nanswer: not found in the corpus\n  confidence 50%\n" in capsys.readouterr().out
    assert ask(home, *options, "--min-confidence", 0.6, "--retrieval", "lexical") == 0
    assert "note: the confidence was fitted to answers from the model's" in capsys.readouterr().err
    assert ask(home, *options, "--min-confidence", 1.5) == 2
    assert "min_confidence must be between 0 and 1" in capsys.readouterr().err
    assert ask(home, *options[:-2], "--min-confidence", 0.5) == 2
    assert "no fitted confidence" in capsys.readouterr().err


def test_ask_cites_what_later_tokens_found(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--k", 2, "--max-new-tokens", 6, "--cite", "--retrieve", "every:2", "--json")
    assert ask(home, "ask", "w1 w2", *options) == 0
    found = json.loads(capsys.readouterr().out)
    later = [id for one in found["retrievals"] for id in one["passages"]]
    assert [one["id"] for one in found["passages"]] == list(dict.fromkeys(later))
    assert len(found["attribution"]["shares"]) == len(found["passages"]) > 2
    assert sum(found["attribution"]["shares"]) + found["attribution"]["own"] == pytest.approx(1)


def test_another_retriever_finds_by_the_prompts_words(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMPRAG_CACHE", str(tmp_path))

    def found(*arguments: object) -> list[str]:
        assert ask(home, *arguments, "--json") == 0
        return [one["id"] for one in json.loads(capsys.readouterr().out)["passages"]]

    for command in (("search", "w17"), ("ask", "w17", "--max-new-tokens", 2)):
        assert found(*command, "--retrieval", "lexical", "--k", 1) == ["p3"]
        assert len(found(*command, "--retrieval", "lexical")) == 2  # the model's own k
    assert found("ask", "w17", "--max-new-tokens", 2, "--retrieval", "lexical", "--k", 0) == []
    assert ask(home, "search", "w17", "--retrieval", "lexical", "--k", 10) == 2
    assert "k is 10, but the index has 9 passages" in capsys.readouterr().err


def test_a_search_by_text_does_not_load_the_model(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMPRAG_CACHE", str(tmp_path))
    monkeypatch.delattr("imprag.pipeline.load_pretrained")
    assert ask(home, "search", "w17", "--retrieval", "lexical", "--json") == 0
    found = json.loads(capsys.readouterr().out)["passages"]
    assert [(one["id"], one["row"], one["kind"]) for one in found[:1]] == [("p3", 3, "lexical")]
    assert len(found) == 2  # the model's own k
    with pytest.raises(NameError, match="load_pretrained"):
        ask(home, "search", "w17")


@pytest.mark.parametrize("command", ["ask", "search"])
def test_prompts_from_standard_input(
    home: Path,
    command: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts = [f"w{n} w3" for n in range(11)]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(prompts)))
    assert ask(home, command, "-", "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt"] for line in lines] == prompts
    assert all(("answer" in line) == (command == "ask") for line in lines)


@pytest.mark.parametrize("command", ["ask", "search"])
def test_prompts_before_a_wrong_one_are_answered(
    home: Path,
    command: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfw1\r\n\r\ncaf\xe9\r\nw2\r\n"), "utf-8")
    monkeypatch.setattr("sys.stdin", stream)
    assert ask(home, command, "-", "--json") == 2
    captured = capsys.readouterr()
    assert [json.loads(line)["prompt"] for line in captured.out.splitlines()] == ["w1"]
    message = "prompt 2 is not valid Unicode at character 4 (line 3 of standard input)"
    assert message in captured.err
    assert ask(home, command, "caf\udce9") == 2
    assert "the prompt is not valid Unicode at character 4" in capsys.readouterr().err


def test_signs_that_a_console_lacks_are_replaced(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = []
    for options in ((), ("--json",)):
        out = io.TextIOWrapper(io.BytesIO(), "cp1252")
        monkeypatch.setattr("sys.stdout", out)
        assert ask(home, "search", "w1 → €", *options) == 0
        out.flush()
        printed.append(out.buffer.getvalue().decode("cp1252"))
    text, line = printed
    assert text.startswith("w1 ? €\n")
    assert json.loads(line)["prompt"] == "w1 → €"


def with_question_template(home: Path, folder: Path, template: str) -> Path:
    """A copy of the model that puts plain questions into a template."""
    shutil.copytree(home / "model", folder)
    settings = json.loads((folder / "imprag.json").read_text())
    (folder / "imprag.json").write_text(json.dumps({**settings, "question_template": template}))
    return folder


def test_plain_questions_are_put_into_the_models_template(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index stays valid, the prompt is shown as typed, and ``--raw`` reads it as it is."""
    trained = with_question_template(home, tmp_path / "trained", "w90 {question} w91")

    def shown(command: str, prompt: str, *options: object) -> dict[str, Any]:
        options = ("--json", *(["--max-new-tokens", 4] if command == "ask" else []), *options)
        assert ask(home, command, prompt, *options) == 0
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        del answer["timings"]
        return answer

    for command in ("ask", "search"):
        templated = shown(command, "w1 w2", "--model", trained)
        as_it_is = shown(command, "w1 w2", "--model", trained, "--raw")
        by_hand = shown(command, "w90 w1 w2 w91")
        assert templated == {**by_hand, "prompt": "w1 w2"}
        assert as_it_is == shown(command, "w1 w2") != templated
        assert as_it_is["model_prompt"] == as_it_is["prompt"] == "w1 w2"
        monkeypatch.setattr("sys.stdin", io.StringIO("w1 w2\n"))
        assert shown(command, "-", "--model", trained) == templated
        # Text retrievers search by the prompt as it was typed.
        typed = shown(command, "w1 w2", "--model", trained, "--retrieval", "lexical")
        assert typed["passages"] == shown(command, "w1 w2", "--retrieval", "lexical")["passages"]
    assert ask(home, "ask", "w1 w2", "--model", trained) == 0
    assert capsys.readouterr().out.startswith("w1 w2\n")
    assert ask(home, "ask", "w1", "--chat", "--raw") == 2
    assert "chat puts prompts into a chat template, and raw" in capsys.readouterr().err


def test_chat_without_a_chat_template_is_refused(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("ask", "search"):
        assert ask(home, command, "w1", "--chat") == 2
        assert "no chat template" in capsys.readouterr().err


def test_typed_prompts_are_answered_one_by_one(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = []

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

        def __next__(self) -> str:
            line = super().__next__()
            answered.append(capsys.readouterr().out)
            return line

    monkeypatch.setattr("sys.stdin", Terminal("w1\nw2\n"))
    assert ask(home, "ask", "-") == 0
    before_first, before_second = answered
    assert "answer:" not in before_first
    assert before_second.startswith("w1\n")
    assert "answer:" in before_second
    assert capsys.readouterr().out.startswith("w2\n")


def test_search_and_ask_find_the_same(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for command in ("ask", "search"):
        assert ask(home, command, "w1 w2", "--json", "--k", 4) == 0
        found.append([p["id"] for p in json.loads(capsys.readouterr().out)["passages"]])
    assert found[0] == found[1]


def test_info(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", home / "index", "--verify", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "index"
    assert facts["index"]["count"] == facts["corpus"]["count"] == 9
    assert run("info", home / "model") == 0
    assert "max_passage_tokens: 16" in capsys.readouterr().out
    assert run("info", home / "index" / "corpus", "--json") == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "corpus"
    assert run("info", "--json") == 0
    assert "torch" in json.loads(capsys.readouterr().out)["versions"]
    assert run("info", home) == 2
    assert run("info", home / "nothing") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ask", " "], "the prompt is empty"),
        (["ask", " ".join(["w1"] * 1000)], "tokens, but only 960 fit"),
        (["ask", "w1", "--k", "99"], "k is 99"),
        (["search", "w1", "--k", "99"], "k is 99"),
        (["ask", "w1", "--k", "many"], "many"),
        (["ask", "w1", "--model", "no/model"], "hf download no/model"),
        (["ask", "w1", "--dtype", "float12"], "unknown dtype"),
        (["ask", "w1", "--no-such-option"], "no-such-option"),
        (["ask", "w1", "--k", "0", "--kv-cache", "x"], "--kv-cache has no effect with --k 0"),
        (["info", "--verify"], "--verify has no effect without a folder"),
        (["info", "{home}/model", "--verify"], "--verify has no effect on a model"),
        (["bench", "--out", "x", "--quick", "--k", "3"], "--quick has its own numbers"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_mistakes_give_one_line_and_status_2(
    home: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [argument.format(home=home) for argument in arguments]
    if arguments[0] in ("ask", "search"):
        defaults = {"--model": home / "model", "--index": home / "index"}
        for name, value in defaults.items():
            if name not in arguments:
                arguments = [*arguments, name, str(value)]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if not line.startswith("note:")]
    assert len(errors) == 1
    assert errors[0].startswith("imprag: error: ")
    assert message in errors[0]
    assert captured.out == ""


def test_corpora_that_cannot_be_indexed(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def index(name: str, *options: object) -> tuple[int, str]:
        out = tmp_path / "out" / Path(name).stem
        status = run("index", tmp_path / name, "--out", out, "--model", home / "model", *options)
        assert status == 0 or not out.exists()
        return status, capsys.readouterr().err

    (tmp_path / "bad.jsonl").write_text('{"text": "w1"}\n{oops\n{"title": "w3"}\n')
    status, errors = index("bad.jsonl")
    assert status == 2
    assert "bad.jsonl" in errors
    assert "line 2" in errors
    status, errors = index("bad.jsonl", "--skip-bad-lines")
    assert status == 0
    assert "skipped 2 bad lines" in errors
    assert "line 3" in errors
    (tmp_path / "empty.jsonl").write_text("")
    assert "empty" in index("empty.jsonl")[1]
    (tmp_path / "twice.jsonl").write_text('{"id": "a", "text": "w1"}\n{"id": "a", "text": "w2"}\n')
    status, errors = index("twice.jsonl")
    assert status == 2
    assert "'a'" in errors
    assert index("missing.jsonl")[0] == 2


def test_several_corpora_make_one_index(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "more.jsonl").write_text('{"id": "q", "text": "w3 w4"}\nno JSON\n')
    corpora = [home / "corpus.jsonl", tmp_path / "more.jsonl"]
    out = ["--out", tmp_path / "both", "--model", home / "model"]
    assert run("index", *corpora, *out, "--skip-bad-lines") == 0
    assert "both: 10 passages" in capsys.readouterr().err
    assert run("index", *out) == 2
    assert "say which corpus" in capsys.readouterr().err


def test_an_index_of_another_model_and_a_damaged_one(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ImpRAGConfig(base_model="tiny", b=1, t=3, max_passage_tokens=16)
    save_pretrained(ImpRAGModel(tiny_lm(seed=5), config), tiny_tokenizer(), tmp_path / "other")
    assert run("ask", "w1", "--model", tmp_path / "other", "--index", home / "index") == 2
    command = f"imprag index {home}/index/corpus --model {tmp_path}/other --out {home}/index"
    assert f"build it again with: {command} --overwrite" in capsys.readouterr().err
    assert run("ask", "w1", "--model", home / "model", "--index", tmp_path) == 2
    assert "is no index folder" in capsys.readouterr().err


@pytest.mark.parametrize("command", removed.INSTEAD)
def test_an_option_that_went_names_what_takes_its_place(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = command.split()
    known = {str(part) for part in app[parts[0]]} if len(parts) > 1 else set(app)
    assert parts[-1] in known
    for option, instead in removed.INSTEAD[command].items():
        assert main([*parts, option, "1"]) == 2
        assert capsys.readouterr().err == (f"imprag: error: {option} was removed: {instead}\n")


def test_a_renamed_command_names_the_new_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", "build", "--out", "x"]) == 2
    assert capsys.readouterr().err == (
        "imprag: error: the command memory was renamed: use imprag kv\n"
    )


def test_as_a_process() -> None:
    command = [sys.executable, "-m", "imprag"]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert all(name in shown.stdout for name in ("ask", "index", "search", "info"))
    failed = subprocess.run([*command, "ask", ""], capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert failed.stdout == ""


def test_a_kv_cache_is_built_described_and_read(home: Path, tmp_path: Path, capsys) -> None:
    cache = tmp_path / "kv"
    assert ask(home, "kv", "build", "--out", cache, "--dry-run") == 0
    printed = capsys.readouterr().out
    assert re.match(r"9 passages, \S+ of them encoded in a second on this machine: ", printed)
    codecs = [line.split("|")[1].strip() for line in printed.splitlines() if line[:1] == "|"][2:]
    assert codecs == ["bf16", "fp32", "int8", "pq"]
    dry_run = ("kv", "build", "--out", cache, "--codec", "fp32", "--dry-run", "--json")
    assert ask(home, *dry_run) == 0
    plan = json.loads(capsys.readouterr().out)
    assert not cache.exists()
    assert ask(home, "kv", "build", "--out", cache, "--codec", "fp32") == 0
    assert "9 passages," in capsys.readouterr().err
    assert run("info", cache, "--verify", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "kv_cache"
    assert facts["kv_cache"]["count"] == plan["passages"] == 9
    (fp32,) = plan["codecs"]
    assert fp32["codec"] == "fp32"
    stored = facts["kv_cache"]["bytes_per_passage"]
    assert fp32["bytes_per_passage"] == pytest.approx(stored, rel=0.02)  # the rest is headers
    assert plan["hours"] == pytest.approx(9 / plan["passages_per_second"] / 3600)
    answers = []
    for arguments in ((), ("--kv-cache", cache)):
        assert ask(home, "ask", "w1 w2", "--json", "--max-new-tokens", 4, *arguments) == 0
        captured = capsys.readouterr()
        assert "not in the KV cache" not in captured.err
        answers.append(json.loads(captured.out))
    assert answers[0]["answer"] == answers[1]["answer"]


def test_a_kv_cache_of_half_of_the_tokens(home: Path, tmp_path: Path, capsys) -> None:
    half = ("kv", "build", "--out", tmp_path / "kv", "--kv-keep-ratio", "0.5")
    for further in ((), ("--dry-run",)):
        assert ask(home, *half, "--codec", "pq", *further) == 2
        assert capsys.readouterr().err == (
            "imprag: error: the codec pq needs the position of every token, so it takes no "
            "kv_keep_ratio below 1: leave 0.5 out, or choose bf16 or int8\n"
        )
    assert ask(home, *half, "--dry-run", "--json") == 0
    captured = capsys.readouterr()
    plan = {one["codec"]: one["disk"] for one in json.loads(captured.out)["codecs"]}
    assert list(plan) == ["bf16", "fp32", "int8"]
    assert "note: not pq: the codec pq needs the position of every token" in captured.err
    assert ask(home, *half, "--codec", "bf16") == 0
    capsys.readouterr()
    assert run("info", tmp_path / "kv", "--json") == 0
    facts = json.loads(capsys.readouterr().out)["kv_cache"]
    assert facts["kv_keep_ratio"] == 0.5
    assert ask(home, "ask", "w1 w2", "--kv-cache", tmp_path / "kv", "--max-new-tokens", 2) == 0
    assert "not in the KV cache" not in capsys.readouterr().err


def test_a_kv_cache_of_the_most_retrieved_passages(home: Path, tmp_path: Path, capsys) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("w1 w2\n" * 3)
    hot = ("--out", tmp_path / "hot", "--prompts", prompts, "--top-passages", 1)
    assert ask(home, "kv", "build", *hot) == 0
    capsys.readouterr()
    assert ask(home, "ask", "w1 w2", "--json", "--kv-cache", tmp_path / "hot") == 0
    captured = capsys.readouterr()
    assert "1 of 2 passages were not in the KV cache" in captured.err
    assert ask(home, "kv", "build", "--out", tmp_path / "hot", "--update") == 2
    assert "give --top-passages and --prompts, whose choice is added" in capsys.readouterr().err
    assert ask(home, "kv", "build", *hot[:-1], 2, "--update", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("1 passages, ")
    assert [line.split("|")[1].strip() for line in printed.splitlines()[4:]] == ["bf16"]
    assert ask(home, "kv", "build", *hot, "--update", "--dry-run") == 2
    assert "lacks none of the passages: there is nothing to add" in capsys.readouterr().err
    assert ask(home, "kv", "build", *hot[:-1], 2, "--update") == 0
    told = capsys.readouterr().err
    assert "to add: bf16 KV cache of 1 passages: about " in told
    assert "hot: 2 passages, " in told
    assert ask(home, "kv", "build", "--out", tmp_path / "x", "--top-passages", 1) == 2
    assert "belong together" in capsys.readouterr().err


def test_info_names_a_damaged_file_of_a_kv_cache(home: Path, tmp_path: Path, capsys) -> None:
    cache = tmp_path / "kv"
    assert ask(home, "kv", "build", "--out", cache) == 0
    assert main(["info", str(cache)]) == 0
    (shard,) = cache.glob("*.safetensors")
    content = shard.read_bytes()
    for damage in (b"\xff" * len(content), content[:-1], None):
        shard.unlink() if damage is None else shard.write_bytes(damage)
        capsys.readouterr()
        assert main(["info", str(cache)]) == 2
        assert f"{shard} is damaged" in capsys.readouterr().err


def test_a_kv_cache_of_another_model_is_refused(home: Path, tmp_path: Path, capsys) -> None:
    assert ask(home, "kv", "build", "--out", tmp_path / "kv") == 0
    config = ImpRAGConfig(base_model="tiny", b=1, t=4, k=2, max_passage_tokens=16)
    save_pretrained(ImpRAGModel(tiny_lm(), config), tiny_tokenizer(), tmp_path / "model")
    arguments = ("--model", tmp_path / "model", "--index", home / "index")
    assert run("ask", "w1", *arguments, "--kv-cache", tmp_path / "kv") == 2
    assert "made by another model" in capsys.readouterr().err
