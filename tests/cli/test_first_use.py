"""The corpus that is made while the built-in model is converted."""

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
    with corpus_meanwhile("default", None):
        assert not built_in_folder("default").exists()
    assert len(Corpus.open(built_in_folder("default"))) == 23186
    monkeypatch.setattr("subprocess.Popen", None)
    with corpus_meanwhile("default", None):
        pass  # it is not made again


def test_nothing_is_left_behind_if_the_model_fails_to_load() -> None:
    with pytest.raises(KeyboardInterrupt), corpus_meanwhile("default", None):
        raise KeyboardInterrupt
    assert not built_in_folder("default").exists()


@pytest.mark.parametrize(("model", "index"), [("other", None), ("default", Path("index"))])
def test_other_models_and_indexes_do_not_need_it(
    model: str, index: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subprocess.Popen", None)
    with corpus_meanwhile(model, index):
        pass
    assert not built_in_folder("default").exists()
