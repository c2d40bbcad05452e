"""The examples of docs/guides/extending-retrieval.md: installed, tested, and used."""

import io
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import documented
from documented import blocks, calls, is_shell
from imprag.cli import main
from imprag.errors import ImpRAGError
from imprag.index.backends import INDEX_BACKENDS
from imprag.retrieval.registry import RETRIEVERS

PAGE = "docs/guides/extending-retrieval.md"
BLOCKS = [block for block in blocks() if block.document == PAGE]
#: The page's files: blocks that begin with a file's name.
FILES = {block.content.split()[1]: block.content for block in BLOCKS if block.language == "python"}
assert FILES.keys() == {"mystore.py", "test_mystore.py", "trigrams.py", "test_trigrams.py"}
for _name in ("test_mystore.py", "test_trigrams.py"):
    exec(compile(FILES[_name], _name, "exec"))  # the suites, which pytest collects here


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The page's package, installed with its entry points."""
    folder = tmp_path_factory.mktemp("installed")
    for name in ("mystore.py", "trigrams.py"):
        (folder / name).write_text(FILES[name])
    (points,) = [block.content for block in BLOCKS if block.language == "toml"]
    info = folder / "mystore-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mystore\nVersion: 1\n")
    for quoted, written in (("project.entry-points.", ""), ('"', "")):
        points = points.replace(quoted, written)
    (info / "entry_points.txt").write_text(points)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        for registry in (INDEX_BACKENDS, RETRIEVERS):
            patch.setattr(registry, "_registered", {})
        yield
    for name in ("mystore", "trigrams"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with everything that documents name."""
    folder = tmp_path_factory.mktemp("extending")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMPRAG_CACHE", str(folder / "cache"))
        documented.make_home(folder / "home")
        yield folder / "home"


def commands(word: str) -> list[str]:
    """The page's commands that contain a word."""
    lines = [line for block in BLOCKS if is_shell(block) for line in block.content.splitlines()]
    return [line for line in lines if word in line]


@pytest.mark.parametrize(("word", "number"), [("numpy-index", 4), ("trigrams", 3)])
def test_the_command_line_uses_the_example(
    word: str,
    number: int,
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
        assert main(arguments) == 0, f"{shlex.join(arguments)}\n{capsys.readouterr().err}"
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
            "unknown index kind 'nope'; known are flat, ivfpq, hnsw, mystore (packages add others "
            "under the entry-point group imprag.index_backends)",
        ),
        (
            "search who? --retriever nope",
            "unknown retriever 'nope'; known are self, teacher, bm25, trigrams (packages add "
            "others under the entry-point group imprag.retrievers)",
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
