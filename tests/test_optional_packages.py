"""Commands without the packages that are optional: they say so before the work, or do without."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import documented
from imprag.errors import ImpRAGError
from imprag.io.optional import missing, note_without, require

BLOCKED = ("matplotlib", "tensorboard", "datasets")
_RUN = """
import json, sys
from importlib.machinery import PathFinder
find_spec = PathFinder.find_spec
def without_blocked(name, *arguments):
    return None if name.split(".")[0] in {blocked} else find_spec(name, *arguments)
PathFinder.find_spec = staticmethod(without_blocked)
from imprag.cli import main
for command in json.loads(sys.argv[1]):
    print("---", file=sys.stderr)
    print("status", main(command), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("optional") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMPRAG_CACHE", str(path / "cache"))
        documented.make_home(path)
    recipe = {
        "model": {"base": "lm", "b": 1, "t": 3, "k": 2, "max_passage_tokens": 16},
        "corpus": "passages.jsonl",
        "data": [{"tasks": "my-questions.jsonl", "task": "nq", "positives": "gold"}],
        "batch": {"examples": 2, "candidates": 2, "hard_negatives": 0},
        "train": {"steps": 1},
        "trainer": {"bf16": False},
    }
    (path / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    return path


def run(home: Path, commands: list[list[str]]) -> list[tuple[int, str]]:
    """Exit status and standard error of commands, in a process without the packages."""
    environment = {**os.environ, "IMPRAG_CACHE": str(home / "cache")}
    program = [sys.executable, "-c", _RUN.format(blocked=BLOCKED), json.dumps(commands)]
    done = subprocess.run(program, cwd=home, env=environment, capture_output=True, text=True)
    parts = [part.rsplit("status ", 1) for part in done.stderr.split("---\n")[1:]]
    assert done.returncode == 0, done.stderr
    return [(int(status), text) for text, status in parts]


def test_commands_without_optional_packages(home: Path) -> None:
    own = ["--model", "my-model", "--index", "my-index", "--dtype", "float32"]
    questions = ["--data", "factbook-bench", "--tasks", "factbook/qa", "--limit", "1"]
    results = run(
        home,
        [
            ["eval", *questions, *own, "--out", "runs/one"],
            ["eval", *questions, *own, "--k", "1", "--out", "runs/other"],
            ["compare", "runs/one", "runs/other", "--html", "both.html"],
            ["eval", "--tasks", "nq=some/set", *own, "--out", "runs/hub"],
            ["train", "--config", "recipe.yaml", "--out", "trained"],
            ["train", "--config", "recipe.yaml", "--set", "data.0.tasks=a/set", "--out", "not"],
        ],
    )  # fmt: skip
    assert [status for status, _ in results] == [0, 0, 0, 2, 0, 2]
    errors = [error for _, error in results]
    assert errors[0].startswith(
        "note: there will be no plots in the report, because matplotlib is not installed; "
        'for these: pip install "imprag[eval]"\n'
    )
    assert "<svg" not in (home / "runs" / "one" / "report.html").read_text()
    assert "<svg" not in (home / "both.html").read_text()
    assert errors[3].endswith('some/set needs datasets; run: pip install "imprag[eval]"\n')
    assert "no curves for TensorBoard, because tensorboard is not installed" in errors[4]
    assert (home / "trained" / "model" / "imprag.json").is_file()
    assert errors[5].endswith('a/set needs datasets; run: pip install "imprag[train]"\n')
    assert not (home / "not").exists()


def test_a_missing_package_is_named_with_the_command_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert missing("json", "no_such_module", "no_such.module") == [
        "no_such_module",
        "no_such.module",
    ]
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(
        ImpRAGError, match=r'this needs no-such and yaml; run: pip install "imprag\['
    ):
        require("this", "eval", "json", "no_such", "yaml")
    require("this", "eval", "json")
    note_without("tests", "dev", "json")
    note_without("tests", "dev", "no_such")
    note_without("tests", "dev", "no_such")
    assert capsys.readouterr().err.count("there will be no tests, because no-such is not") == 1
