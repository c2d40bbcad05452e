"""The examples of docs/guides/extending-retrieval.md: installed, tested, and used."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from extension_packages import ExamplePage, make_home, run_commands
from imprag.cli import main
from imprag.errors import ImpRAGError
from imprag.index.backends import INDEX_BACKENDS
from imprag.retrieval.registry import RETRIEVERS

PAGE = ExamplePage("docs/guides/extending-retrieval.md", ("mystore.py", "trigrams.py"))
globals().update(PAGE.suites())  # which pytest collects here


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The page's package, installed with its entry points."""
    with pytest.MonkeyPatch.context() as patch:
        PAGE.install(tmp_path_factory.mktemp("installed"), patch)
        for registry in (INDEX_BACKENDS, RETRIEVERS):
            patch.setattr(registry, "_registered", {})
        yield
    PAGE.forget()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with everything that documents name."""
    with pytest.MonkeyPatch.context() as patch:
        yield make_home(tmp_path_factory.mktemp("extending"), patch)


@pytest.mark.parametrize(("word", "number"), [("numpy-index", 4), ("trigrams", 3)])
def test_the_command_line_uses_the_example(
    word: str,
    number: int,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = [line for _, line in PAGE.commands() if word in line]
    assert len(lines) == number
    run_commands(lines, home, tmp_path, monkeypatch, capsys)
    shown = capsys.readouterr().out
    expected = {"numpy-index": "kind: mystore", "trigrams": "factbook/qa"}[word]
    assert expected in shown
    if word == "trigrams":
        first = shown.splitlines()[1]
        assert "Chad" in first  # found in spite of the misspelling


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "index default --out x --kind nope",
            "unknown index kind 'nope'; known are flat, ivfpq, hnsw, milvus, milvus-ivf, pgvector, "
            "mystore (packages add others under the entry-point group imprag.index_backends)",
        ),
        (
            "search who? --retrieval nope",
            "unknown retriever 'nope'; known are implicit, lexical, hybrid, dense, trigrams "
            "(packages add others under the entry-point group imprag.retrievers)",
        ),
    ],
)
def test_an_unknown_name_is_answered_with_the_known_ones(
    command: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command.split()) == 2
    assert capsys.readouterr().err == f"imprag: error: {message}\n"


def test_an_index_of_a_kind_that_is_not_installed_is_named(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from imprag.index import PassageIndex, backends, passage_index
    from imprag.io.registry import Registry

    suite = TestMyStore()  # type: ignore[name-defined] # noqa: F821
    suite.build(tmp_path / "index")
    bare: Registry[type[PassageIndex]] = Registry("index kind", "no.such.group", {})
    monkeypatch.setattr(passage_index, "INDEX_BACKENDS", bare)
    with pytest.raises(ImpRAGError, match=r"index cannot be opened: unknown index kind 'mystore'"):
        PassageIndex.open(tmp_path / "index")
    other = next(iter(backends.INDEX_BACKENDS.names()))
    bare.register("mystore")(backends.INDEX_BACKENDS.find(other))
    with pytest.raises(ImpRAGError, match="built by the back end 'numpy', but here .* 'faiss'"):
        PassageIndex.open(tmp_path / "index")
