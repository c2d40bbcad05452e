"""The corpus that is made while the built-in model is converted."""

import time
from pathlib import Path

import pytest

from imprag.cli import imports
from imprag.cli.first_use import corpus_meanwhile
from imprag.corpus import Corpus
from imprag.corpus.library import built_in_folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPRAG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(imports, "own_process", True)


def test_the_corpus_is_there_when_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with corpus_meanwhile("default", None, None):
        assert not built_in_folder("default").exists()
    assert len(Corpus.open(built_in_folder("default"))) == 23186
    monkeypatch.setattr("subprocess.Popen", None)
    with corpus_meanwhile("default", None, None):
        pass  # it is not made again


def test_nothing_is_left_behind_if_the_model_fails_to_load() -> None:
    corpora = built_in_folder("default").parent

    def fail_while_it_is_written() -> None:
        until = time.monotonic() + 30
        while not any(corpora.glob(".tmp-*")):
            assert time.monotonic() < until
            time.sleep(0.01)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), corpus_meanwhile("default", None, None):
        fail_while_it_is_written()
    assert not any(corpora.glob(".tmp-*"))
    assert not built_in_folder("default").exists()


def test_nothing_is_imported_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "imprag.py").write_text("open('imported', 'w')")
    (tmp_path / "random.py").write_text("open('imported', 'w')")
    monkeypatch.chdir(tmp_path)
    with corpus_meanwhile("default", None, None):
        pass
    assert not Path("imported").exists()
    assert built_in_folder("default").exists()


def test_without_another_process_the_model_still_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "")
    with corpus_meanwhile("default", None, None):
        pass
    assert not built_in_folder("default").exists()


@pytest.mark.parametrize(
    ("model", "index", "k"),
    [("other", None, None), ("default", Path("index"), None), ("default", None, 0)],
)
def test_it_is_not_made_for_those_that_do_not_need_it(
    model: str, index: Path | None, k: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subprocess.Popen", None)
    with corpus_meanwhile(model, index, k):
        pass
    assert not built_in_folder("default").exists()
