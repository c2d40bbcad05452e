"""The states of an index folder: whose files are deleted, who may write, which state is valid."""

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest
from test_update import PASSAGES, Encoder, built

from imprag.corpus import Corpus, Passage
from imprag.errors import ImpRAGError
from imprag.index.folder import IndexFolder
from imprag.index.manifest import IndexManifest
from imprag.index.states import CORPUS, INDEX, POINTER, STATES, only_writer
from imprag.index.update import compact, upsert_and_remove
from imprag.io import locking

FEW = PASSAGES[:5]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return built(FEW, tmp_path / "index").path


def change(path: Path, text: str = "another text") -> IndexFolder:
    return upsert_and_remove(path, Encoder(), [Passage("p0", "", text)], progress=False).folder


def test_files_of_the_user_among_the_states_stay(tmp_path: Path) -> None:
    theirs = ["states/texas.jsonl", "states/000007/corpus/letters.txt", "states/000001/notes.txt"]
    for name in theirs:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("theirs")
    built(FEW, tmp_path)
    for n in range(3):
        change(tmp_path, f"text {n}")
    compact(tmp_path)
    corpus = Corpus.build(PASSAGES[:9], tmp_path / "corpora" / "other")
    IndexFolder.build(corpus, Encoder(), tmp_path, overwrite=True, progress=False)
    assert [(tmp_path / name).read_text() for name in theirs] == ["theirs"] * 3
    kept = {one.name for one in (tmp_path / STATES).iterdir()}
    assert kept == {"texas.jsonl", "000001", "000004", "000007"}


@pytest.mark.parametrize("name", ["states/texas", "states/000001"])
def test_an_index_may_lie_in_a_folder_called_states(tmp_path: Path, name: str) -> None:
    built(FEW, tmp_path / name)
    for n in range(2):
        assert change(tmp_path / name, f"text {n}").path == tmp_path / name
    folder = IndexFolder.open(tmp_path / name)
    assert (folder.path, folder.corpus[0].text) == (tmp_path / name, "text 1")
    assert folder.is_current


@pytest.mark.parametrize("overwrite", [True, False])
def test_all_writers_take_one_lock(
    path: Path, overwrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build does nothing to a folder that is being changed."""
    waits = threading.Event()
    monkeypatch.setattr(locking, "print", lambda *_, **__: waits.set(), raising=False)
    corpus = Corpus.build(PASSAGES[:9], path.parent / "other")

    def write() -> None:
        if overwrite:
            IndexFolder.build(corpus, Encoder(), path, overwrite=True, progress=False)
        else:
            change(path)

    writer = threading.Thread(target=write)
    with only_writer(path):
        before = {one.name for one in path.rglob("*")}
        writer.start()
        assert waits.wait(60)
        assert {one.name for one in path.rglob("*")} == before
        assert list(IndexFolder.open(path).corpus) == FEW
    writer.join()
    assert len(IndexFolder.open(path).corpus) == (9 if overwrite else 5)


def test_an_index_is_replaced_when_the_new_one_is_finished(path: Path) -> None:
    class Failing(Encoder):
        def __call__(self, passages):
            if passages[0].id == "p8":
                raise ImpRAGError("out of memory")
            assert list(IndexFolder.open(path).corpus) == FEW
            return super().__call__(passages)

    corpus = Corpus.build(PASSAGES[:10], path.parent / "other")
    settings = {"overwrite": True, "progress": False, "shard_size": 4, "batch_size": 4}
    with pytest.raises(ImpRAGError, match="out of memory"):
        IndexFolder.build(corpus, Failing(), path, **settings)
    assert list(IndexFolder.open(path).corpus) == FEW
    encoder = Encoder()
    IndexFolder.build(corpus, encoder, path, **settings)
    assert encoder.embedded == ["p8", "p9"]
    assert list(IndexFolder.open(path).corpus) == PASSAGES[:10]
    assert {one.name for one in path.iterdir()} == {POINTER, STATES}


def test_a_reader_finds_the_new_state_if_its_own_is_deleted_meanwhile(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it has come to: in front of the files of the passages, or of the embeddings."""
    opened = {"corpus": Corpus.__init__, "index": IndexManifest.read.__func__}
    number = 0

    def meanwhile(part: str) -> None:
        nonlocal number
        if wanted and wanted.pop(0) == part:
            number += 1
            change(path, f"text {number}")
            compact(path)

    def corpus(self, *arguments):
        meanwhile("corpus")
        opened["corpus"](self, *arguments)

    def read(cls, folder):
        manifest = opened["index"](cls, folder)
        meanwhile("index")
        return manifest

    wanted: list[str] = []
    monkeypatch.setattr(Corpus, "__init__", corpus)
    monkeypatch.setattr(IndexManifest, "read", classmethod(read))
    for order in (["corpus"], ["-", "index"]):
        wanted = order
        assert IndexFolder.open(path).corpus[0].text == f"text {number}"
        assert wanted == []
    assert number == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"format_version": 1, "state": 99}', "names the state 99, which is missing; write {.*2}"),
        ('{"format_version": 2, "state": 2}', "has format version 2, this ImpRAG reads 1"),
        ('{"format_version": 1, "state": true}', "names no state"),
        (None, "is missing, but .* has been changed"),
    ],
)
def test_a_wrong_pointer_is_said_and_can_be_repaired(
    path: Path, content: str | None, words: str
) -> None:
    for n in range(2):
        change(path, f"text {n}")
    (path / POINTER).unlink()
    if content is not None:
        (path / POINTER).write_text(content)
    for act in (IndexFolder.open, change, compact):
        with pytest.raises(ImpRAGError, match=words) as refused:
            act(path)
    advised = str(refused.value).partition("write ")[2].partition(" into it")[0]
    (path / POINTER).write_text(advised)
    assert IndexFolder.open(path).corpus[0].text == "text 1"
    assert IndexFolder.open(path).root == path / STATES / "000002"


def test_a_folder_whose_states_are_all_gone_can_be_overwritten(path: Path) -> None:
    (path / POINTER).write_text('{"format_version": 1, "state": 3}')
    for part in (CORPUS, INDEX):
        (path / part).rename(path.parent / f"old {part}")
    with pytest.raises(ImpRAGError, match="names the state 3, which is missing; build"):
        IndexFolder.open(path)
    corpus = Corpus.open(path.parent / f"old {CORPUS}")
    IndexFolder.build(corpus, Encoder(), path, overwrite=True, progress=False)
    assert list(IndexFolder.open(path).corpus) == FEW


def test_a_full_disk_gives_one_clear_error(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The corpus lies on another disk, from which it is copied."""

    def no_link(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    corpus = Corpus.build(PASSAGES[:9], tmp_path / "other")
    monkeypatch.setattr(os, "link", no_link)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copy2", full)
        with pytest.raises(ImpRAGError, match="corpus: No space left on device; free some space"):
            IndexFolder.build(corpus, Encoder(), path, overwrite=True, progress=False)
    assert list(IndexFolder.open(path).corpus) == FEW
    IndexFolder.build(corpus, Encoder(), path, overwrite=True, progress=False)
    assert len(IndexFolder.open(path).corpus) == 9
