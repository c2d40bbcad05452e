"""Building a KV cache: resuming, refusing, predicting, staying small."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_kv_cache import tiny_imprag_model

from conftest import tiny_tokenizer
from imprag.corpus import Corpus, Passage
from imprag.errors import ImpRAGError
from imprag.io.building import building_folder
from imprag.kv_cache import DiskStore, build_kv_cache, predict_kv_cache

COUNT = 600


def passages(count: int) -> list[Passage]:
    return [
        Passage(f"p{n}", f"w{n % 94}", " ".join(f"w{(7 * n + i) % 94}" for i in range(3 + n % 11)))
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus.build(passages(COUNT), tmp_path_factory.mktemp("corpus") / "corpus")


def build(corpus: Corpus, out: Path, model=None, **settings) -> DiskStore:
    settings = {"codec": "int8", "shard_passages": 100, "progress": False, **settings}
    return build_kv_cache(corpus, model or tiny_imprag_model(), tiny_tokenizer(), out, **settings)


class Interrupted(Exception):
    """What a power cut looks like from inside."""


def interrupted_after(calls: int):
    """A model that fails after so many batches of passages, and counts them."""
    model = tiny_imprag_model()
    encode = model.encode
    model.calls = 0

    def failing(*arguments, **settings):
        if model.calls == calls:
            raise Interrupted
        model.calls += 1
        return encode(*arguments, **settings)

    model.encode = failing
    return model


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class TestResuming:
    @pytest.mark.parametrize("codec", ["bf16", "pq"])
    def test_only_what_is_missing_is_encoded_again(self, corpus, tmp_path, codec) -> None:
        whole = interrupted_after(10**6)
        build(corpus, tmp_path / "whole", whole, codec=codec)
        with pytest.raises(Interrupted):
            build(corpus, tmp_path / "cache", interrupted_after(whole.calls // 2), codec=codec)
        assert not (tmp_path / "cache").exists()
        rest = interrupted_after(10**6)
        build(corpus, tmp_path / "cache", rest, codec=codec)
        assert rest.calls < whole.calls * 0.7
        assert files(tmp_path / "cache") == files(tmp_path / "whole")
        assert not building_folder(tmp_path / "cache").exists()

    def test_killed_twice(self, corpus, tmp_path) -> None:
        build(corpus, tmp_path / "whole")
        out = tmp_path / "cache"
        shards = building_folder(out) / "parts"
        for finished in (1, 3):
            child = start(corpus, out, pause=0.02)
            while len(list(shards.glob("0*"))) < finished:
                assert child.poll() is None
                time.sleep(0.005)
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            assert not out.exists()
        assert start(corpus, out).wait() == 0
        assert files(out) == files(tmp_path / "whole")

    def test_a_finished_cache_is_opened(self, corpus, tmp_path) -> None:
        build(corpus, tmp_path / "cache")
        model = interrupted_after(0)
        assert len(build(corpus, tmp_path / "cache", model)) == COUNT


def start(
    corpus: Corpus, out: Path, *, codec: str = "int8", pause: float = 0.0
) -> "subprocess.Popen[str]":
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, here / "killed_kv_build.py", corpus.path, out, codec, str(pause)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_peak_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    peaks, stored = [], 0
    for count in (1000, 10_000):
        corpus = Corpus.build(passages(count), tmp_path / f"corpus-{count}")
        child = start(corpus, tmp_path / f"cache-{count}", codec="fp32")
        output, _ = child.communicate()
        assert child.returncode == 0
        peaks.append(1024 * int(output))
        stored = sum(path.stat().st_size for path in (tmp_path / f"cache-{count}").iterdir())
    # The libraries take most of the peak, and how much differs from machine to machine. A build
    # that held all of the large KV cache would be larger by its size.
    assert peaks[1] - peaks[0] < stored / 2
    assert peaks[1] < 1.1 * peaks[0]


class TestUpdating:
    @pytest.mark.parametrize("codec", ["int8", "pq"])
    def test_only_passages_with_a_new_text_are_encoded(self, corpus, tmp_path, codec) -> None:
        old = build(corpus, tmp_path / "cache", codec=codec)
        before = files(tmp_path / "cache")
        texts = [f"w1 w{n}" for n in range(7)] * 2
        new = [Passage(f"new {n}", "", text) for n, text in enumerate(texts)]
        edited = Corpus.build([*new, *list(corpus)[100:]], tmp_path / "edited")
        store = build(edited, tmp_path / "cache", update=True, shard_passages=3)
        assert len(store) == COUNT + 7
        assert all(store.has(list(edited)))
        assert all(store.has(list(corpus)))
        assert (store.codec.name, store.manifest.corpus_fingerprint) == (codec, edited.fingerprint)
        after = files(tmp_path / "cache")
        assert {name: after[name] for name in before if name.endswith(".safetensors")} == {
            name: content for name, content in before.items() if name.endswith(".safetensors")
        }
        store.manifest.verify_files(tmp_path / "cache")
        fresh = build(edited, tmp_path / "fresh", codec="int8")
        if codec == "int8":
            for one, other in zip(store.get(new), fresh.get(new), strict=True):
                assert torch.equal(one["codes"], other["codes"])
        assert torch.equal(
            *(next(iter(one.get([corpus[200]])[0].values())) for one in (old, store))
        )

    def test_an_interrupted_update_goes_on(self, corpus, tmp_path) -> None:
        build(Corpus.build(passages(300), tmp_path / "part"), tmp_path / "cache")
        whole = interrupted_after(10**6)
        build(corpus, tmp_path / "whole", whole, rows=range(300, 600))
        half = interrupted_after(whole.calls // 2)
        with pytest.raises(Interrupted):
            build(corpus, tmp_path / "cache", half, update=True)
        made = len(DiskStore(tmp_path / "cache"))
        assert 300 < made < COUNT
        rest = interrupted_after(10**6)
        assert len(build(corpus, tmp_path / "cache", rest, update=True)) == COUNT
        assert rest.calls < whole.calls
        again = interrupted_after(0)
        assert len(build(corpus, tmp_path / "cache", again, update=True)) == COUNT

    def test_a_selection_is_updated_by_a_selection(self, corpus, tmp_path) -> None:
        build(corpus, tmp_path / "cache", rows=[1, 2])
        with pytest.raises(ImpRAGError, match="give --top-passages and --prompts, whose choice"):
            build(corpus, tmp_path / "cache", update=True)
        store = build(corpus, tmp_path / "cache", update=True, rows=[2, 5])
        assert store.has(corpus.passages([1, 2, 3, 5])) == [True, True, False, True]
        assert store.manifest.selection

    def test_another_model_and_a_missing_cache_are_refused(self, corpus, tmp_path) -> None:
        build(corpus, tmp_path / "cache")
        with pytest.raises(ImpRAGError, match="by another model"):
            build(corpus, tmp_path / "cache", tiny_imprag_model(seed=1), update=True)
        with pytest.raises(ImpRAGError, match="imprag kv build"):
            build(corpus, tmp_path / "nothing", update=True)


def test_the_passages_of_a_finished_cache_are_compared_once(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    has = DiskStore.has
    monkeypatch.setattr(
        DiskStore, "has", lambda store, batch: (read.append(len(batch)), has(store, batch))[1]
    )
    for settings, expected in (({}, 0), ({}, COUNT), ({"overwrite": True}, COUNT)):
        read.clear()
        build(corpus, tmp_path / "cache", **settings)
        assert sum(read) == expected


class TestRefusing:
    def test_another_codec_in_an_unfinished_build(self, corpus, tmp_path) -> None:
        with pytest.raises(Interrupted):
            build(corpus, tmp_path / "cache", interrupted_after(3))
        with pytest.raises(ImpRAGError, match="unfinished build with another .*codec"):
            build(corpus, tmp_path / "cache", codec="bf16")

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"codec": "bf16"}, "codec"),
            ({"kv_keep_ratio": 0.5}, "kv_keep_ratio"),
            ({"model": tiny_imprag_model(seed=1)}, "model"),
            ({"model": tiny_imprag_model(t=4)}, "model, t"),
            ({"rows": [1, 2]}, "count"),
        ],
    )
    def test_another_finished_cache_is_refused(self, corpus, tmp_path, change, named) -> None:
        build(corpus, tmp_path / "cache")
        with pytest.raises(ImpRAGError, match=f"holds a KV cache already, with another .*{named}"):
            build(corpus, tmp_path / "cache", **change)

    def test_as_many_other_passages(self, corpus, tmp_path) -> None:
        build(corpus, tmp_path / "cache", rows=[1, 2])
        with pytest.raises(ImpRAGError, match=r"another set of passages; .*--overwrite"):
            build(corpus, tmp_path / "cache", rows=[1, 3])
        store = build(corpus, tmp_path / "cache", rows=[1, 3], overwrite=True)
        found = store.get([corpus[row] for row in (1, 2, 3)])
        assert [one is not None for one in found] == [True, False, True]

    def test_an_edited_corpus_is_refused_and_rebuilt_with_overwrite(self, corpus, tmp_path) -> None:
        with pytest.raises(Interrupted):
            build(corpus, tmp_path / "unfinished", interrupted_after(3))
        build(corpus, tmp_path / "finished")
        edited = Corpus.build([*corpus][::-1], tmp_path / "edited")
        for name in ("finished", "unfinished"):
            with pytest.raises(ImpRAGError, match=r"with another corpus.*; .*--overwrite"):
                build(edited, tmp_path / name)
            store = build(edited, tmp_path / name, overwrite=True)
            assert store.manifest.corpus_fingerprint == edited.fingerprint
            assert not building_folder(tmp_path / name).exists()

    def test_a_damaged_part(self, corpus, tmp_path) -> None:
        with pytest.raises(Interrupted):
            build(corpus, tmp_path / "cache", interrupted_after(3))
        part = min((building_folder(tmp_path / "cache") / "parts").glob("0*"))
        part.write_bytes(part.read_bytes()[:-1])
        with pytest.raises(ImpRAGError, match=f"{part.name} is damaged .* only this part"):
            build(corpus, tmp_path / "cache")

    def test_rows_and_shares_that_make_no_sense(self, corpus, tmp_path) -> None:
        for rows in ([], [COUNT], [-1]):
            with pytest.raises(ImpRAGError, match="rows"):
                build(corpus, tmp_path / "cache", rows=rows)
        for share in (0, 1.5):
            with pytest.raises(ImpRAGError, match="kv_keep_ratio"):
                build(corpus, tmp_path / "cache", kv_keep_ratio=share)

    def test_a_head_size_that_product_quantization_cannot_take(self, corpus, tmp_path) -> None:
        model = tiny_imprag_model()
        model.decoder.head_dim = 18
        with pytest.raises(ImpRAGError, match="the head size is 18"):
            build(corpus, tmp_path / "cache", model, codec="pq")

    def test_a_full_disk(self, corpus, tmp_path) -> None:
        # The limit on a file's size stands for the disk.
        script = (
            "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY));"
            "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
        )
        here = Path(__file__).parent
        path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
        command = [here / "killed_kv_build.py", corpus.path, tmp_path / "cache", "bf16", "0"]
        done = subprocess.run(
            [sys.executable, "-c", script, *map(str, command)],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert "cannot write" in done.stderr
        assert "run the same command again" in done.stderr
        assert len(build(corpus, tmp_path / "cache", codec="bf16")) == COUNT


@pytest.mark.parametrize(("codec", "kv_keep_ratio"), [("bf16", 1.0), ("int8", 0.5), ("pq", 1.0)])
def test_the_prediction_is_near(corpus, tmp_path, codec, kv_keep_ratio) -> None:
    settings = {"codec": codec, "kv_keep_ratio": kv_keep_ratio}
    sizes = predict_kv_cache(corpus, tiny_imprag_model(), tiny_tokenizer(), **settings)
    store = build(corpus, tmp_path / "cache", **settings)
    states = store.manifest.tokens * 2 * 3 * 2 * store.manifest.bytes_per_vector
    assert sizes["count"] == COUNT
    # Halves of short passages are rounded up to a token.
    assert sizes["bytes"] == pytest.approx(states, rel=0.1)
    assert sum(file.bytes for file in store.manifest.files) > states


def test_progress_and_prediction_are_shown(corpus, tmp_path, capsys) -> None:
    build(corpus, tmp_path / "cache", progress=True)
    told = capsys.readouterr().err
    assert "int8 KV cache of 600 passages: about" in told
    assert "are free" in told
    assert "Encoding" in told


def test_states_have_the_dtype_of_the_model(corpus, tmp_path) -> None:
    store = build(corpus, tmp_path / "cache", codec="bf16")
    (parts,) = store.get([corpus[0]])
    assert parts is not None
    assert parts["states"].dtype == torch.bfloat16
