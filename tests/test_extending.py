"""The examples of docs/guides/extending.md: installed, tested, and used."""

import io
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import documented
from documented import blocks, calls, is_shell
from imprag.cli import main
from imprag.io.plugins import plugins
from imprag.io.registry import Registry
from imprag.kv_cache.codecs import CODECS
from imprag.tasks import task as task_module
from imprag.training.objectives import OBJECTIVES
from imprag.training.samplers import SAMPLERS

PAGE = "docs/guides/extending.md"
BLOCKS = [block for block in blocks() if block.document == PAGE]
#: The page's files: blocks that begin with a file's name.
FILES = {
    block.content.split()[1]: block.content
    for block in BLOCKS
    if block.language in ("python", "yaml")
}
PLUGINS = ("centred.py", "margin.py", "epochs.py", "quiz.py")
assert FILES.keys() == {*PLUGINS, *(f"test_{name}" for name in PLUGINS), "extended.yaml"}
for _name in PLUGINS:
    exec(compile(FILES[f"test_{_name}"], _name, "exec"))  # the suites, which pytest collects here
TINY = ("--set", "model.base=lm", "model.b=1", "model.t=3", "train.steps=2", "trainer.bf16=false")


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The page's package, installed with its entry points."""
    folder = tmp_path_factory.mktemp("installed")
    for name in PLUGINS:
        (folder / name).write_text(FILES[name])
    (points,) = [block.content for block in BLOCKS if block.language == "toml"]
    info = folder / "extensions-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: extensions\nVersion: 1\n")
    for quoted, written in (("project.entry-points.", ""), ('"', "")):
        points = points.replace(quoted, written)
    (info / "entry_points.txt").write_text(points)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        plugins.cache_clear()
        patch.setattr(task_module, "_TASKS", dict(task_module._TASKS))
        for registry in (CODECS, OBJECTIVES, SAMPLERS):
            patch.setattr(registry, "_registered", {})
        yield
    plugins.cache_clear()
    for name in PLUGINS:
        sys.modules.pop(name.removesuffix(".py"), None)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with everything that documents name."""
    folder = tmp_path_factory.mktemp("extending")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMPRAG_CACHE", str(folder / "cache"))
        documented.make_home(folder / "home")
        (folder / "home" / "extended.yaml").write_text(FILES["extended.yaml"])
        quiz = TestQuiz.content  # type: ignore[name-defined] # noqa: F821
        (folder / "home" / "quiz.jsonl").write_text(quiz)
        yield folder / "home"


def commands(word: str) -> list[str]:
    """The page's commands in the blocks that contain a word."""
    return [
        line
        for block in BLOCKS
        if is_shell(block) and word in block.content
        for line in block.content.splitlines()
    ]


@pytest.mark.parametrize(
    ("word", "number", "expected"),
    [("centred", 3, "codec: centred"), ("extended.yaml", 2, "steps: 2"), ("quiz", 2, "quiz")],
)
def test_the_command_line_uses_the_example(
    word: str,
    number: int,
    expected: str,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    lines = commands(word)
    assert len(lines) == number
    for line in lines:
        ((program, *arguments),) = calls(line, tmp_path)
        assert program == "imprag"
        if arguments[0] == "train":
            arguments += TINY
        if arguments[0] == "ask":
            arguments += ["--max-new-tokens", "2"]
        assert main(arguments) == 0, f"{shlex.join(arguments)}\n{capsys.readouterr().err}"
    told = capsys.readouterr()
    assert expected in told.out + told.err


def test_a_run_says_what_it_was_trained_with(home: Path) -> None:
    recipe = (home / "run" / "recipe.yaml").read_text()
    assert "sampler: epochs" in recipe
    assert "margin: 2.0" in recipe


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "kv build --model my-model --index my-index --out x --codec nope",
            "unknown codec 'nope'; known are bf16, fp32, int8, int4, pq, centred (packages add "
            "others under the entry-point group imprag.codecs)",
        ),
        (
            "train --config extended.yaml --out x --set stages.warmup.objective=nope",
            "unknown retrieval objective 'nope'; known are nce, self_distillation, margin "
            "(packages add others under the entry-point group imprag.objectives)",
        ),
        (
            "train --config extended.yaml --out x --set batch.sampler=nope",
            "unknown batch sampler 'nope'; known are mixture, epochs (packages add others under "
            "the entry-point group imprag.samplers)",
        ),
        (
            "eval --tasks nope=quiz.jsonl --model my-model --index my-index --out x",
            "(packages add others under the entry-point group imprag.tasks)",
        ),
    ],
)
def test_an_unknown_name_is_answered_with_the_known_ones(
    command: str,
    message: str,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(home)
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("imprag: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_kv_cache_of_a_codec_that_is_not_installed_names_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    bare: Registry[object] = Registry("codec", "no.such.group", {})
    monkeypatch.setattr("imprag.kv_cache.codecs.base.CODECS", bare)
    ask = ["ask", "who?", "--model", "my-model", "--index", "my-index", "--kv-cache", "centred-kv"]
    assert main(ask) == 2
    assert "unknown codec 'centred'" in capsys.readouterr().err
