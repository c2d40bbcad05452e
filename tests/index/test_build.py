"""Building an index: resuming, refusing, predicting, staying small."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from killed_build import COUNTS, SHARD
from stub_corpus import ClusterEncoder, StubCorpus

from imprag.errors import ImpRAGError
from imprag.index import PassageIndex, build_index
from imprag.index.manifest import MANIFEST
from imprag.io.building import building_folder

DIMENSION = 8


class Interrupted(Exception):
    """What a power cut looks like from inside."""


def build(path: Path, encode=None, count: int = 1000, **changes) -> PassageIndex:
    settings = {
        "model_fingerprint": "model-one",
        "dimension": DIMENSION,
        "shard_size": 256,
        "batch_size": 100,
        "progress": False,
    }
    corpus = changes.pop("corpus", StubCorpus(count))
    encode = encode or ClusterEncoder(DIMENSION, clusters=20)
    return build_index(corpus, encode, path, **settings | changes)


def interrupted_after(passages: int):
    """An encoder that fails once it has seen so many passages."""
    encoder = ClusterEncoder(DIMENSION, clusters=20)

    def encode(batch):
        if encoder.encoded >= passages:
            raise Interrupted
        return encoder(batch)

    return encode


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class TestResuming:
    @pytest.mark.parametrize("kind", ["flat", "hnsw"])
    def test_only_what_is_missing_is_encoded_again(self, tmp_path, kind):
        whole = build(tmp_path / "whole", kind=kind)
        with pytest.raises(Interrupted):
            build(tmp_path / "index", interrupted_after(700), kind=kind)
        assert not (tmp_path / "index").exists()
        with pytest.raises(ImpRAGError, match=r"not finished .*index\.building"):
            PassageIndex.open(tmp_path / "index")
        encoder = ClusterEncoder(DIMENSION, clusters=20)
        index = build(tmp_path / "index", encoder, kind=kind)
        assert encoder.encoded == 1000 - 2 * 256
        assert index.manifest == whole.manifest
        assert files(tmp_path / "index") == files(tmp_path / "whole")
        assert not building_folder(tmp_path / "index").exists()

    def test_a_finished_index_is_opened(self, tmp_path):
        build(tmp_path / "index")
        encoder = ClusterEncoder(DIMENSION, clusters=20)
        assert len(build(tmp_path / "index", encoder)) == 1000
        assert encoder.encoded == 0

    def test_killed_between_finishing_and_moving(self, tmp_path, monkeypatch):
        whole = build(tmp_path / "whole")
        move = os.replace

        def no_move(source, target):
            if Path(target) == tmp_path / "index":
                raise Interrupted
            move(source, target)

        monkeypatch.setattr(os, "replace", no_move)
        with pytest.raises(Interrupted):
            build(tmp_path / "index")
        monkeypatch.undo()
        encoder = ClusterEncoder(DIMENSION, clusters=20)
        assert build(tmp_path / "index", encoder).manifest == whole.manifest
        assert encoder.encoded == 0

    def test_killed_between_moving_and_tidying(self, tmp_path):
        build(tmp_path / "index")
        (building_folder(tmp_path / "index") / "shards").mkdir(parents=True)
        build(tmp_path / "index")
        assert not building_folder(tmp_path / "index").exists()

    def test_scratch_of_a_killed_build_is_deleted(self, tmp_path):
        work = building_folder(tmp_path / "index")
        (work / ".tmp-plan.json-1").mkdir(parents=True)  # killed before there was a plan
        with pytest.raises(Interrupted):
            build(tmp_path / "index", interrupted_after(500))
        (work / "shards" / ".tmp-000002.arrow-1").mkdir()
        (work / ".tmp-index-1").mkdir()
        with pytest.raises(Interrupted):
            build(tmp_path / "index", interrupted_after(0))
        assert not list(work.rglob(".tmp-*"))

    @pytest.mark.slow
    @pytest.mark.skipif(not hasattr(os, "fork"), reason="the killed processes are forked")
    def test_sigkill_at_twenty_random_moments(self, tmp_path):
        kinds = [*["flat"] * 10, *["hnsw"] * 8, *["ivfpq"] * 2]
        script = Path(__file__).with_name("killed_build.py")
        run = subprocess.run(
            [sys.executable, script, tmp_path, *kinds],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        results = json.loads(run.stdout)
        assert len(results) == len(kinds)
        for number, result in enumerate(results):
            kind = result["kind"]
            assert result["encoded"] <= COUNTS[kind] + SHARD
            out = tmp_path / f"{number}-{kind}"
            assert files(out) == files(tmp_path / kind)
            PassageIndex.open(out).verify()
        expected = {f"{n}-{kind}" for n, kind in enumerate(kinds)} | set(kinds)
        assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == expected


class TestRefusing:
    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"model_fingerprint": "model-two"}, "model"),
            ({"corpus": StubCorpus(1000, "corpus-two")}, "corpus"),
            ({"count": 999}, "count"),
            ({"dtype": "float32"}, "dtype"),
            ({"kind": "hnsw"}, "kind, settings"),
        ],
    )
    def test_another_build_in_the_same_place(self, tmp_path, change, named):
        with pytest.raises(Interrupted):
            build(tmp_path / "index", interrupted_after(500))
        work = building_folder(tmp_path / "index")
        before = files(work / "shards")
        with pytest.raises(ImpRAGError, match=f"unfinished build with another {named}"):
            build(tmp_path / "index", **change)
        assert files(work / "shards") == before
        build(tmp_path / "index")
        with pytest.raises(ImpRAGError, match=f"holds an index already, with another {named}"):
            build(tmp_path / "index", **change)

    def test_other_shards(self, tmp_path):
        with pytest.raises(Interrupted):
            build(tmp_path / "index", interrupted_after(500))
        with pytest.raises(ImpRAGError, match="another batch, shard"):
            build(tmp_path / "index", shard_size=128, batch_size=64)

    def test_an_index_that_was_changed(self, tmp_path):
        index = build(tmp_path / "index")
        index.remove(["p1"])
        index.add(["new"], np.zeros((1, DIMENSION), np.float32))
        index.save(tmp_path / "index")
        with pytest.raises(ImpRAGError, match="another set of passages"):
            build(tmp_path / "index")

    def test_places_that_hold_something_else(self, tmp_path):
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "cat.jpg").touch()
        with pytest.raises(ImpRAGError, match="photos holds no index"):
            build(tmp_path / "photos")
        (tmp_path / "file").touch()
        with pytest.raises(ImpRAGError, match="file holds no index"):
            build(tmp_path / "file")
        (tmp_path / "photos").rename(building_folder(tmp_path / "index"))
        with pytest.raises(ImpRAGError, match=r"index\.building .*holds something else"):
            build(tmp_path / "index")
        assert (building_folder(tmp_path / "index") / "cat.jpg").exists()

    def test_an_empty_folder_is_a_place(self, tmp_path):
        (tmp_path / "index").mkdir()
        assert len(build(tmp_path / "index")) == 1000

    def test_an_empty_corpus(self, tmp_path):
        with pytest.raises(ImpRAGError, match="corpus is empty"):
            build(tmp_path / "index", count=0)
        assert not list(tmp_path.iterdir())

    def test_too_few_passages_to_train_on(self, tmp_path):
        with pytest.raises(ImpRAGError, match=r"at least 10,240 .* there are 1,000.*flat"):
            build(tmp_path / "index", kind="ivfpq")
        assert not list(tmp_path.iterdir())

    def test_unknown_kinds(self, tmp_path):
        for change, message in (
            (
                {"kind": "lsh"},
                "unknown index kind 'lsh'; known are flat, ivfpq, hnsw",
            ),
            ({"dtype": "int8"}, "unknown dtype 'int8'; known are float16, float32"),
        ):
            with pytest.raises(ImpRAGError, match=message):
                build(tmp_path / "index", **change)

    @pytest.mark.parametrize(
        ("broken", "message"),
        [
            (lambda e: e[:, 1:], r"'p100' to 'p199': embeddings have the shape \(100, 7\)"),
            (lambda e: e[1:], "'p100' to 'p199': 100 passages, but 99 embeddings"),
            (lambda e: np.where(e == e[3, 3], np.nan, e), "'p100' to 'p199': embedding 3 is not"),
            (lambda e: e * 1e6, "'p100' to 'p199': .* too large for float16"),
        ],
    )
    def test_an_encoder_that_goes_wrong(self, tmp_path, broken, message):
        encoder = ClusterEncoder(DIMENSION, clusters=20)

        def encode(batch):
            embeddings = encoder(batch)
            return broken(embeddings) if batch[0].id == "p100" else embeddings

        with pytest.raises(ImpRAGError, match=message):
            build(tmp_path / "index", encode)
        assert len(build(tmp_path / "index")) == 1000

    @pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: bytes([b[0] ^ 1]) + b[1:]])
    def test_a_damaged_shard(self, tmp_path, change):
        with pytest.raises(Interrupted):
            build(tmp_path / "index", interrupted_after(600))
        shards = building_folder(tmp_path / "index") / "shards"
        shard = next(shards.glob("000001-*"))
        shard.write_bytes(change(shard.read_bytes()))
        with pytest.raises(ImpRAGError, match=f"{shard.name} is damaged .*delete it"):
            build(tmp_path / "index")
        shard.unlink()
        encoder = ClusterEncoder(DIMENSION, clusters=20)
        build(tmp_path / "index", encoder).verify()
        assert encoder.encoded == 256


class TestFullDisk:
    """The limit on a file's size stands for the disk: every stage meets it."""

    script = """
import resource, signal, sys
from pathlib import Path
from imprag.errors import ImpRAGError
from imprag.index import build_index
from stub_corpus import ClusterEncoder, StubCorpus

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
encoder = ClusterEncoder(8, clusters=20)
try:
    build_index(
        StubCorpus(1000), encoder, Path(sys.argv[1]), model_fingerprint="model-one", dimension=8,
        kind=sys.argv[2], shard_size=256, batch_size=100, progress=False,
    )
except ImpRAGError as error:
    print(error)
"""

    @pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="there is no limit to set")
    @pytest.mark.parametrize(
        ("kind", "limit", "file", "shards"),
        [
            ("flat", 6_000, "000000.arrow", 0),
            ("flat", 12_000, "vectors.faiss", 4),
            ("hnsw", 60_000, "hnsw.faiss", 4),
        ],
    )
    def test_every_stage(self, tmp_path, kind, limit, file, shards):
        out = tmp_path / "index"
        run = subprocess.run(
            [sys.executable, "-c", self.script, out, kind, str(limit)],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
        assert re.fullmatch(r"cannot write .*; free some space .*\n", run.stdout)
        assert file in run.stdout
        assert not out.exists()
        assert not list(tmp_path.rglob(".tmp-*"))
        assert len(list(tmp_path.rglob("0*-*.arrow"))) == shards
        encoder = ClusterEncoder(DIMENSION, clusters=20)
        build(out, encoder, kind=kind).verify()
        assert encoder.encoded == 1000 - min(1000, 256 * shards)


def test_result_does_not_depend_on_shards(tmp_path):
    for shard_size in (100, 300, 5000):
        build(tmp_path / str(shard_size), shard_size=shard_size)
    expected = files(tmp_path / "100")
    vectors = next(name for name in expected if name.startswith("vectors"))
    for shard_size in ("300", "5000"):
        assert files(tmp_path / shard_size)[vectors] == expected[vectors]


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("flat", "float16"), ("flat", "float32"), ("ivfpq", "float16"), ("hnsw", "float32")],
)
def test_prediction_comes_first_and_is_right(tmp_path, capsys, kind, dtype):
    encoder = ClusterEncoder(DIMENSION, clusters=20)

    def encode(batch):
        seen.append(capsys.readouterr().err)
        return encoder(batch)

    seen: list[str] = []
    build(tmp_path / "index", encode, 10_240, kind=kind, dtype=dtype, progress=True)
    line = seen[0].splitlines()[0]
    assert line.startswith(f"{kind} index of 10,240 passages, 8 x {dtype}: about ")
    units = {"KB": 1e3, "MB": 1e6, "GB": 1e9}
    sizes = [float(n) * units[unit] for n, unit in re.findall(r"([\d.]+) ([KMG]B)", line)]
    final, building, free, memory = sizes
    actual = sum(file.stat().st_size for file in (tmp_path / "index").iterdir())
    assert final == pytest.approx(actual, rel=0.1)
    assert building > 1.3 * final if kind == "flat" else building > final
    assert free > building
    assert memory < 1e9
    assert "Encoding: 100%" in "".join(seen) + capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak")
def test_peak_memory_of_200000_passages(tmp_path):
    """In a process of its own that has loaded no torch, with an encoder that makes up vectors."""
    script = """
import re, sys
from pathlib import Path
from imprag.index import build_index
from stub_corpus import ClusterEncoder, StubCorpus

index = build_index(
    StubCorpus(200_000), ClusterEncoder(192, clusters=100), Path(sys.argv[1]),
    model_fingerprint="model-one", dimension=192,
)
assert len(index) == 200_000 and "torch" not in sys.modules
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""
    run = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "index"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    # All vectors are 77 MB as they are stored and 154 MB as they are encoded.
    assert 1024 * int(run.stdout) < 220e6


def test_manifest_is_the_last_file(tmp_path):
    """A folder without a manifest is no index; one with it is whole."""
    index = build(tmp_path / "index")
    (tmp_path / "index" / MANIFEST).unlink()
    with pytest.raises(ImpRAGError, match="holds no index"):
        PassageIndex.open(tmp_path / "index")
    assert index.manifest.count == 1000
