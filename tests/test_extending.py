"""The examples of docs/guides/extending.md: installed, tested, and used."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from extension_packages import ExamplePage, make_home, run_commands
from imprag.cli import main
from imprag.io.plugins import plugins
from imprag.io.registry import Registry
from imprag.kv_cache.codecs import CODECS
from imprag.tasks import TASKS
from imprag.training.objectives import OBJECTIVES
from imprag.training.samplers import SAMPLERS

PLUGINS = ("centred.py", "margin.py", "epochs.py", "quiz.py")
PAGE = ExamplePage("docs/guides/extending.md", PLUGINS, "extended.yaml")
globals().update(PAGE.suites())  # which pytest collects here
TINY = ("--set", "model.base=lm", "model.b=1", "model.t=3", "train.steps=2", "trainer.bf16=false")


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The page's package, installed with its entry points."""
    with pytest.MonkeyPatch.context() as patch:
        PAGE.install(tmp_path_factory.mktemp("installed"), patch)
        plugins.cache_clear()
        patch.setattr(TASKS, "_registered", dict(TASKS._registered))
        for registry in (CODECS, OBJECTIVES, SAMPLERS):
            patch.setattr(registry, "_registered", {})
        yield
    plugins.cache_clear()
    PAGE.forget()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with everything that documents name, and the page's recipe and questions."""
    with pytest.MonkeyPatch.context() as patch:
        folder = make_home(tmp_path_factory.mktemp("extending"), patch)
        (folder / "extended.yaml").write_text(PAGE.files["extended.yaml"])
        (folder / "quiz.jsonl").write_text(TestQuiz.content)  # type: ignore[name-defined] # noqa: F821
        yield folder


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
    lines = [line for block, line in PAGE.commands() if word in block.content]
    assert len(lines) == number
    more = {"train": TINY, "ask": ("--max-new-tokens", "2")}
    run_commands(lines, home, tmp_path, monkeypatch, capsys, more)
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
            "unknown codec 'nope'; known are bf16, fp32, int8, pq, centred (packages add "
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
