"""The cache on disk: a passage that was read once is not encoded again, and is read the same."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_kv_cache import PASSAGES, READ, build, live, logits, tiny_imprag_model
from torch.testing import assert_close

from conftest import tiny_tokenizer
from imprag.corpus import Corpus, Passage
from imprag.errors import ImpRAGError
from imprag.io.file_cache import FileCache
from imprag.kv_cache import DiskCache, PassageKVCache, disk_cache
from imprag.kv_cache.codecs.base import register_codec
from imprag.kv_cache.codecs.int import Int8
from imprag.kv_cache.stores import TieredStore
from imprag.model import ImpRAGModel

COUNT = 4  # passages in READ


@pytest.fixture(scope="module")
def model() -> ImpRAGModel:
    return tiny_imprag_model()


def opened(model: ImpRAGModel, folder: Path, max_bytes: int = 10**7) -> PassageKVCache:
    """The cache of a folder, as another process opens it."""
    store = DiskCache(model, tiny_tokenizer(), FileCache(folder, max_bytes))
    return PassageKVCache(model, tiny_tokenizer(), store)


def read(cache: PassageKVCache, passages=READ) -> torch.Tensor:
    """The logits of prompts that read passages; what is new is written then."""
    found = logits(cache.model, cache, passages)
    cache.store.flush()
    return found


def test_a_second_process_encodes_nothing_and_reads_the_same(
    model: ImpRAGModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(model, tmp_path)
    expected = read(first)
    assert (first.hits, first.misses) == (0, COUNT)
    monkeypatch.setattr(model, "encode_batches", None)
    second = opened(model, tmp_path)
    for cache in (first, second):
        assert torch.equal(read(cache), expected)
    assert (first.hits, first.misses) == (COUNT, COUNT)
    assert (second.hits, second.misses) == (COUNT, 0)


def test_answers_are_those_of_a_folder_that_kv_build_makes(
    model: ImpRAGModel, tmp_path: Path
) -> None:
    corpus = Corpus.build(PASSAGES, tmp_path / "corpus")
    folder = build(model, corpus, tmp_path / "folder", codec=disk_cache.CODEC)
    expected = logits(model, PassageKVCache(model, tiny_tokenizer(), folder))
    cache = opened(model, tmp_path / "cache")
    for _ in range(2):
        assert_close(read(cache), expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(expected, logits(model, live(model)))


def test_a_passage_is_found_before_it_is_written(model: ImpRAGModel, tmp_path: Path) -> None:
    files = FileCache(tmp_path, 10**7)
    cache = PassageKVCache(model, tiny_tokenizer(), DiskCache(model, tiny_tokenizer(), files))
    with files._only_writer():  # the writer waits for it
        expected = logits(model, cache)
        assert torch.equal(logits(model, cache), expected)
        assert (cache.hits, cache.misses) == (COUNT, COUNT)
        assert files.usage() == (0, 0)
    read(cache)
    assert files.usage()[0] == COUNT


def other_weights() -> ImpRAGModel:
    model = tiny_imprag_model()
    with torch.no_grad():
        next(model.lm.base_model.layers[model.config.t].parameters())[0, 0] += 1.0
    return model


@pytest.mark.parametrize(
    "other",
    [
        other_weights,
        lambda: tiny_imprag_model(b=2),
        lambda: tiny_imprag_model(t=4),
        lambda: tiny_imprag_model(max_passage_tokens=15),
        lambda: ImpRAGModel(tiny_imprag_model().lm.bfloat16(), tiny_imprag_model().config),
    ],
    ids=["weights", "b", "t", "max_passage_tokens", "dtype"],
)
def test_passages_of_another_model_are_not_read(
    model: ImpRAGModel, tmp_path: Path, other: Callable[[], ImpRAGModel]
) -> None:
    read(opened(model, tmp_path))
    cache = opened(other(), tmp_path)
    found = read(cache)
    assert (cache.hits, cache.misses) == (0, COUNT)
    assert torch.equal(read(cache), found)
    assert cache.hits == COUNT


def test_passages_of_another_codec_are_not_read(
    model: ImpRAGModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read(opened(model, tmp_path))
    register_codec("finer")(Int8)
    monkeypatch.setattr(disk_cache, "CODEC", "finer")
    cache = opened(model, tmp_path)
    read(cache)
    assert (cache.hits, cache.misses) == (0, COUNT)


def test_an_edited_passage_is_encoded(model: ImpRAGModel, tmp_path: Path) -> None:
    read(opened(model, tmp_path))
    same, edited = Passage("other", "w3", PASSAGES[3].text), Passage("p3", "w3", "w80 w81")
    cache = opened(model, tmp_path)
    read(cache, [[same, edited]])
    assert (cache.hits, cache.misses) == (1, 1)


def test_a_damaged_passage_is_encoded_and_stored_again(model: ImpRAGModel, tmp_path: Path) -> None:
    expected = read(opened(model, tmp_path))
    for path in list(tmp_path.glob("*.cached"))[:2]:
        path.write_bytes(path.read_bytes()[:-7])
    for counts in ((2, 2), (4, 0)):
        cache = opened(model, tmp_path)
        assert_close(read(cache), expected, rtol=1e-5, atol=1e-5)
        assert (cache.hits, cache.misses) == counts


def test_the_bound_holds_and_the_last_read_passages_stay(
    model: ImpRAGModel, tmp_path: Path
) -> None:
    cache = opened(model, tmp_path, 20_000)
    for passage in PASSAGES:
        read(cache, [[passage]])
        count, size = FileCache(tmp_path, 0).usage()
        assert size <= 20_000
    assert 1 < count < len(PASSAGES)
    again = opened(model, tmp_path)
    read(again, [PASSAGES[-count:]])
    assert (again.hits, again.misses) == (count, 0)


def test_without_a_place_to_write_answers_go_on_with_one_note(
    model: ImpRAGModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    expected = read(opened(model, tmp_path / "elsewhere"))
    monkeypatch.setattr(os, "replace", full)
    cache = opened(model, tmp_path / "cache")
    for _ in range(2):
        assert torch.equal(read(cache), expected)
    assert (cache.hits, cache.misses) == (0, 2 * COUNT)
    assert capsys.readouterr().err == (
        f"note: cannot write the KV cache {tmp_path / 'cache'} (No space left on device); passages "
        "are encoded again when they are read again. IMPRAG_KV_CACHE_GB=0 turns this cache off\n"
    )
    monkeypatch.undo()
    read(cache)
    assert torch.equal(read(cache), expected)
    assert cache.hits == COUNT


def test_a_file_in_the_place_of_the_folder(model: ImpRAGModel, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = opened(model, tmp_path / "file" / "kv")
    read(cache)
    assert "Not a directory" in capsys.readouterr().err


def test_passages_that_depend_on_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImpRAGError, match="none can be stored"):
        opened(tiny_imprag_model(passage_encoding="segmented"), tmp_path)


def test_ram_in_front_of_the_disk(model: ImpRAGModel, tmp_path: Path) -> None:
    expected = read(opened(model, tmp_path))
    disk = DiskCache(model, tiny_tokenizer(), FileCache(tmp_path, 10**7))
    store = TieredStore(disk, 10**7, hold_all=True)
    cache = PassageKVCache(model, tiny_tokenizer(), store)
    assert torch.equal(logits(model, cache), expected)
    disk.files.clear()
    assert torch.equal(logits(model, cache), expected)
    assert (cache.hits, cache.misses, len(store.ram)) == (2 * COUNT, 0, COUNT)
    logits(model, cache, [[PASSAGES[12]]])
    disk.flush()
    assert disk.files.usage()[0] == 1
