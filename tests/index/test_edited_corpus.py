"""An index of a corpus that was edited is never taken for an index of the edited corpus."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from edited_build import NEW, OLD, Encoder, build

from imprag.corpus import Corpus, Passage
from imprag.errors import ImpRAGError
from imprag.index.folder import IndexFolder
from imprag.index.states import CORPUS, INDEX, LEXICAL, POINTER, STATES
from imprag.io.building import building_folder

PASSAGES = [Passage(f"p{n}", f"Title {n}", f"Text {n}.", {"page": n}) for n in range(6)]
EDITS = {
    "text": [replace(PASSAGES[0], text="Another text."), *PASSAGES[1:]],
    "title": [replace(PASSAGES[0], title="Another title"), *PASSAGES[1:]],
    "id": [replace(PASSAGES[0], id="another"), *PASSAGES[1:]],
    "metadata": [replace(PASSAGES[0], meta={"page": 99}), *PASSAGES[1:]],
    "order": PASSAGES[::-1],
    "one more": [*PASSAGES, Passage("new", "", "A new text.")],
    "one less": PASSAGES[:-1],
}


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return Corpus.build(PASSAGES, tmp_path / "corpus")


@pytest.mark.parametrize("edit", EDITS)
def test_edited_corpus_is_refused_and_rebuilt_with_overwrite(
    corpus: Corpus, tmp_path: Path, edit: str
) -> None:
    build(corpus, tmp_path / "index")
    edited = Corpus.build(EDITS[edit], tmp_path / "edited")
    with pytest.raises(ImpRAGError, match=r"another corpus, or of an earlier state .*--overwrite"):
        build(edited, tmp_path / "index")
    assert list(IndexFolder.open(tmp_path / "index").corpus) == PASSAGES
    folder = build(edited, tmp_path / "index", overwrite=True)
    assert list(folder.corpus) == EDITS[edit]
    assert list(IndexFolder.open(tmp_path / "index").corpus) == EDITS[edit]
    assert len(folder.index) == len(EDITS[edit])
    assert {path.name for path in (tmp_path / "index").iterdir()} == {POINTER, STATES}
    assert {path.name for path in folder.root.iterdir()} == {CORPUS, INDEX, LEXICAL}


def test_an_unfinished_build_of_the_corpus_before_its_edit_is_refused(
    corpus: Corpus, tmp_path: Path
) -> None:
    class Failing(Encoder):
        def __call__(self, passages):
            if passages[0].id == "p4":
                raise KeyboardInterrupt
            return super().__call__(passages)

    path = tmp_path / "index"
    with pytest.raises(KeyboardInterrupt):
        IndexFolder.build(corpus, Failing(), path, shard_size=2, batch_size=2, progress=False)
    edited = Corpus.build(EDITS["text"], tmp_path / "edited")
    with pytest.raises(ImpRAGError, match=r"earlier state of this one; .*--overwrite"):
        build(edited, path)
    with pytest.raises(ImpRAGError, match="is not finished"):
        IndexFolder.open(path)
    assert build(edited, path, overwrite=True).corpus[0].text == "Another text."
    assert not building_folder(path / INDEX).exists()


def test_overwrite_keeps_an_index_that_is_right(corpus: Corpus, tmp_path: Path) -> None:
    class Forbidden(Encoder):
        def __call__(self, passages):
            raise AssertionError("embedded again")

    build(corpus, tmp_path / "index")
    again = IndexFolder.build(corpus, Forbidden(), tmp_path / "index", overwrite=True)
    assert len(again.index) == len(PASSAGES)


def test_overwrite_replaces_an_index_of_another_model_kind_or_dtype(
    corpus: Corpus, tmp_path: Path
) -> None:
    class Other(Encoder):
        def fingerprint(self) -> str:
            return "model-two"

    path = tmp_path / "index"
    build(corpus, path)
    with pytest.raises(ImpRAGError, match=r"with another model; .*--overwrite"):
        IndexFolder.build(corpus, Other(), path)
    folder = IndexFolder.build(corpus, Other(), path, overwrite=True, progress=False)
    assert folder.index.manifest.model_fingerprint == "model-two"
    assert build(corpus, path, kind="hnsw", overwrite=True).index.manifest.kind == "hnsw"
    assert build(corpus, path, dtype="float32", overwrite=True).index.manifest.kind == "flat"


def test_the_advised_command_rebuilds_from_the_folders_own_passages(
    corpus: Corpus, tmp_path: Path
) -> None:
    path = tmp_path / "my index"
    folder = build(corpus, path)
    with pytest.raises(ImpRAGError, match="by another model") as refused:
        folder.check_model("model-two", "my-model")
    command = f"imprag index '{path}/corpus' --model my-model --out '{path}' --overwrite"
    assert str(refused.value).endswith(f"build it again with: {command}")
    own = Corpus.open(path / CORPUS)
    assert list(build(own, path, kind="hnsw", overwrite=True).corpus) == PASSAGES


def test_overwrite_never_deletes_what_is_no_index(corpus: Corpus, tmp_path: Path) -> None:
    for name in (CORPUS, INDEX):
        (tmp_path / "home" / name).mkdir(parents=True)
        (tmp_path / "home" / name / "letter.txt").write_text("dear")
        with pytest.raises(ImpRAGError, match="in the way|holds no index"):
            build(corpus, tmp_path / "home", overwrite=True)
        assert (tmp_path / "home" / name / "letter.txt").read_text() == "dear"
        if name == CORPUS:
            (tmp_path / "home" / name / "letter.txt").unlink()
            (tmp_path / "home" / name).rmdir()


def kills(folder: Path, how: str) -> list[dict[str, object]]:
    script = Path(__file__).with_name("edited_build.py")
    run = subprocess.run(
        [sys.executable, script, folder, how],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[dict[str, object]] = json.loads(run.stdout)
    return found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the killed processes are forked")
def test_sigkill_during_an_update_leaves_the_old_state_or_the_new(tmp_path: Path) -> None:
    results = kills(tmp_path, "update")
    assert len(results) > 20
    for result in results:
        assert result["opened"] in (OLD, NEW)
        assert (result["rebuilt"], result["reopened"]) == (NEW, NEW)
        assert result["left"] == ["000002", "000003"]
    assert {result["opened"] for result in results} == {OLD, NEW}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the killed processes are forked")
def test_sigkill_during_a_rebuild_leaves_the_old_index_or_the_new(tmp_path: Path) -> None:
    results = kills(tmp_path, "rebuild")
    assert len(results) > 10
    for result in results:
        assert result["opened"] in (OLD, NEW)
        assert result["built"] == ("refused" if result["opened"] == OLD else NEW)
        assert (result["rebuilt"], result["reopened"]) == (NEW, NEW)
        assert len(result["left"]) == 1
    assert {result["opened"] for result in results} == {OLD, NEW}
