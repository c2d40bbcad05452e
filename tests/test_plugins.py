"""What installed packages add under entry-point groups."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from extension_packages import write_package
from imprag.errors import ImpRAGError
from imprag.io.plugins import plugins
from imprag.tasks import BENCHMARKS, TASKS, load_benchmark, load_task, task_names

QUIZ = """
from imprag.tasks import Benchmark, Task
QUIZ = Task("quiz", "Quiz: {input} Answer:")
QUIZZES = Benchmark(3, lambda out, seed: {"seed": seed})
"""
Install = Callable[..., None]


@pytest.fixture
def install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Install]:
    """Puts a package with one module and entry points where Python finds it."""
    monkeypatch.setattr(TASKS, "_registered", dict(TASKS._registered))

    def install(package: str, code: str, **groups: str) -> None:
        points = "".join(f"[imprag.{group}]\n{point}\n" for group, point in groups.items())
        write_package(tmp_path / package, package, {f"{package}.py": code}, points)
        monkeypatch.syspath_prepend(tmp_path / package)
        plugins.cache_clear()

    yield install
    plugins.cache_clear()


def test_a_package_adds_a_task_and_a_benchmark(install: Install) -> None:
    install("quizzes", QUIZ, tasks="quiz = quizzes:QUIZ", benchmarks="quizzes = quizzes:QUIZZES")
    assert load_task("quiz").template == "Quiz: {input} Answer:"
    assert "quiz" in task_names()
    assert BENCHMARKS.find("quizzes").build(Path("out"), 5) == {"seed": 5}


def test_a_folder_of_another_version_than_the_package_makes_is_refused(
    install: Install, tmp_path: Path
) -> None:
    install("quizzes", QUIZ, benchmarks="quizzes = quizzes:QUIZZES")
    for version in (2, 3):
        manifest = f'{{"name": "quizzes", "version": {version}, "seed": 0, "tasks": {{}}}}'
        (tmp_path / "benchmark.json").write_text(manifest)
        if version == 3:
            assert load_benchmark(tmp_path)["version"] == 3
            continue
        again = f'delete it and run "imprag tasks build quizzes --out {tmp_path}"'
        with pytest.raises(ImpRAGError, match=f"holds version 2, not 3: {again}"):
            load_benchmark(tmp_path)


def test_the_packages_own_benchmark_and_its_tasks_are_plugins_too() -> None:
    assert "factbook" in plugins("imprag.benchmarks")
    assert load_task("factbook/qa").name == "factbook/qa"


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    with pytest.raises(ImpRAGError, match=r"unknown task 'quiz'; known are .*factbook/qa.*entry-"):
        load_task("quiz")
    with pytest.raises(ImpRAGError, match=r"unknown benchmark 'quiz'; known are factbook \("):
        BENCHMARKS.find("quiz")


@pytest.mark.parametrize("code", ["import nothing_of_this_name", "raise OSError('no disk')", "1/0"])
def test_a_broken_plugin_is_named(install: Install, code: str) -> None:
    install("broken", code, tasks="mine = broken")
    with pytest.raises(ImpRAGError, match=r"plug-in 'mine' .* package broken cannot be imported: "):
        load_task("quiz")
    assert load_task("nq").name == "nq"  # what is not asked of plug-ins still works


def test_two_packages_with_one_name_are_refused(install: Install) -> None:
    install("quizzes", QUIZ, tasks="quiz = quizzes:QUIZ")
    install("others", "", tasks="quiz = others")
    with pytest.raises(ImpRAGError, match="two installed packages offer 'quiz' .* imprag.tasks"):
        task_names()
