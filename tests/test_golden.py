"""What users see, held against files in tests/golden: help texts, answers, a dry run.

After an intended change, write the files again and read the difference before you commit it:

    UPDATE_GOLDEN=1 pytest tests/test_golden.py
    git diff tests/golden
"""

import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import cyclopts
import pytest
import rich.console

from conftest import tiny_lm, tiny_tokenizer
from imprag.cli import app, main
from imprag.model import ImpRAGConfig, ImpRAGModel, save_pretrained

GOLDEN = Path(__file__).parent / "golden"
CONFIGS = Path(__file__).parent.parent / "configs"
_FRAME = re.compile(r"[─│╭╮╰╯]")
_OPTION = re.compile(r"^\*? ?(--[a-z-]+(?: --[a-z-]+)*|[A-Z][A-Z-]*) ")
_TYPE = re.compile(r"^(?:STR|INT|FLOAT|PATH|CHOICE|\[?[A-Z]+\.\.\.\]?) ")


def commands(parent: cyclopts.App = app, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The names of every command that the help shows; that of the whole program is ()."""
    yield path
    for name in parent:
        if not name.startswith("-") and parent[name].show:
            yield from commands(parent[name], (*path, name))


def hold_against_file(name: str, text: str) -> None:
    """Compare a text with a golden file, or write the file if ``UPDATE_GOLDEN`` is set."""
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.is_file(), f"{name} is missing; see the head of this test file"
    assert text == path.read_text(encoding="utf-8")


def normalised(help_text: str) -> str:
    """A help text without what differs between releases of cyclopts, such as frames and types.

    Args:
        help_text: printed so wide that no line is wrapped.
    """
    lines = []
    for line in _FRAME.sub("", help_text).splitlines():
        words = " ".join(line.split()).replace("(-h)", "-h")
        if option := _OPTION.match(words):
            described = words[option.end() :]
            while kind := _TYPE.match(described):
                described = described[kind.end() :]
            words = f"{option[1]}: {described}"
        lines.append(words)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


@pytest.mark.parametrize("command", commands(), ids="-".join)
def test_the_help_of_a_command(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    # A console of our own: width and colours of the environment depend on FORCE_COLOR and TERM,
    # and a console that an earlier test made keeps them.
    printed = io.StringIO()
    plain = rich.console.Console(
        file=printed, width=2000, color_system=None, force_terminal=False, force_jupyter=False
    )
    monkeypatch.setattr(app, "_console", plain)
    assert main([*command, "--help"]) == 0
    name = "-".join(("imprag", *command))
    hold_against_file(f"help/{name}.txt", normalised(printed.getvalue()))


@pytest.mark.parametrize("command", [one for one in commands() if one], ids="-".join)
def test_a_command_describes_its_options_and_has_examples(command: tuple[str, ...]) -> None:
    text = (GOLDEN / "help" / f"{'-'.join(('imprag', *command))}.txt").read_text(encoding="utf-8")
    options = re.findall(r"^(--[a-z -]+|[A-Z-]+): ?(.*)$", text, re.MULTILINE)
    assert [name for name, described in options if len(described.split()) < 3] == []
    assert "\nFor example:\n" in text or "\nCommands\n" in text


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, the same at every call, and an index of nine passages."""
    path = tmp_path_factory.mktemp("home")
    config = ImpRAGConfig(base_model="tiny", b=1, t=3, k=3, max_passage_tokens=16, trained=True)
    save_pretrained(ImpRAGModel(tiny_lm(), config), tiny_tokenizer(), path / "model")
    texts = [" ".join(f"w{(5 * n + i) % 94}" for i in range(6)) for n in range(9)]
    rows = [{"id": f"p{n}", "title": f"w{n}", "text": text} for n, text in enumerate(texts)]
    (path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = ["--out", str(path / "index"), "--model", str(path / "model"), "--dtype", "float32"]
    assert main(["index", str(path / "corpus.jsonl"), *made]) == 0
    return path


@pytest.mark.parametrize("form", ["text", "json"])
def test_an_answer(home: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = ["--model", str(home / "model"), "--index", str(home / "index")]
    options = [*source, "--dtype", "float32", "--device", "cpu", "--max-new-tokens", "6"]
    capsys.readouterr()
    if form == "text":
        assert main(["ask", "w10 w12 w7", *options]) == 0
        hold_against_file("ask.txt", capsys.readouterr().out)
        return
    assert main(["ask", "w10 w12 w7", *options, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    answer["timings"] = sorted(answer["timings"])
    for passage in answer["passages"]:
        passage["score"] = round(passage["score"], 3)
    hold_against_file("ask.json", json.dumps(answer, indent=1) + "\n")


def test_the_dry_run_of_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # where no data is
    recipe = CONFIGS / "llama-3.2-3b.yaml"
    assert main(["train", "--config", str(recipe), "--dry-run", "--devices", "8"]) == 0
    hold_against_file("train-dry-run.txt", capsys.readouterr().out)
