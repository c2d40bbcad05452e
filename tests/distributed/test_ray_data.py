"""Indexes and KV caches by a local Ray cluster of two nodes: the same bytes as by one process."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="runs jobs on many machines")

import ray
from ray.cluster_utils import Cluster

from conftest import tiny_lm, tiny_tokenizer
from imprag.cli import main
from imprag.corpus import Corpus, Passage
from imprag.distributed.ray_data import LoadedModel, RayCluster
from imprag.errors import ImpRAGError
from imprag.index.build import build_index
from imprag.index.folder import IndexFolder
from imprag.io.building import building_folder
from imprag.kv_cache import build_kv_cache
from imprag.kv_cache.manifest import states_fingerprint
from imprag.model import ImpRAGConfig, ImpRAGModel, PassageEncoder, load_pretrained, save_pretrained

COUNT = 240


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # A lost node is noticed within a second.
    checks = {"health_check_period_ms": 300, "health_check_failure_threshold": 2}
    quick = {**checks, "health_check_initial_delay_ms": 0, "health_check_timeout_ms": 300}
    head = {"num_cpus": 1, "_system_config": quick, "include_dashboard": False}
    found = Cluster(initialize_head=True, head_node_args=head)
    found.add_node(num_cpus=1)
    yield found
    found.shutdown()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray")
    config = ImpRAGConfig(base_model="tiny", b=1, t=3, k=3, max_passage_tokens=16)
    save_pretrained(ImpRAGModel(tiny_lm(), config), tiny_tokenizer(), folder / "model")
    passages = [
        Passage(f"p{n}", f"w{n % 94}", " ".join(f"w{(7 * n + i) % 94}" for i in range(3 + n % 9)))
        for n in range(COUNT)
    ]
    Corpus.build(passages, folder / "corpus")
    return folder


@pytest.fixture(scope="module")
def loaded(home: Path) -> tuple[Any, Any]:
    return load_pretrained(home / "model", "float32", "cpu")


def on(cluster: Cluster) -> RayCluster:
    return RayCluster(cluster.address, workers=2)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def index(home: Path, out: Path, loaded: tuple[Any, Any], where: RayCluster | None) -> None:
    encoder = PassageEncoder(*loaded)
    worker = LoadedModel(str(home / "model"), "float32", "cpu")
    build_index(
        Corpus.open(home / "corpus"),
        encoder,
        out,
        model_fingerprint=encoder.fingerprint(),
        dimension=encoder.dimension,
        shard_size=10,
        batch_size=5,
        progress=False,
        make_shards=where.index_shards(worker, encoder) if where else None,
    )


def test_a_kv_cache_of_two_nodes_is_that_of_one_process(
    home: Path, loaded: tuple[Any, Any], cluster: Cluster, tmp_path: Path
) -> None:
    worker = LoadedModel(str(home / "model"), "float32", "cpu")
    made_by = states_fingerprint(*loaded)
    for name, make in (("here", None), ("there", on(cluster).kv_shards(worker, made_by))):
        build_kv_cache(
            Corpus.open(home / "corpus"),
            *loaded,
            tmp_path / name,
            codec="pq",  # which is fitted before
            shard_passages=30,
            progress=False,
            make_shards=make,
        )
    assert files(tmp_path / "here") == files(tmp_path / "there")


def test_an_index_of_three_nodes_one_of_which_is_lost_is_that_of_one_process(
    home: Path, loaded: tuple[Any, Any], cluster: Cluster, tmp_path: Path
) -> None:
    index(home, tmp_path / "here", loaded, None)
    lost = cluster.add_node(num_cpus=1)
    failures: list[BaseException] = []

    def build() -> None:
        try:
            index(home, tmp_path / "there", loaded, RayCluster(cluster.address, workers=3))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=build)
    thread.start()
    shards = building_folder(tmp_path / "there") / "shards"
    end = time.monotonic() + 120
    while thread.is_alive() and len(list(shards.glob("*.arrow"))) < 3:
        assert time.monotonic() < end
        time.sleep(0.01)
    cluster.remove_node(lost, allow_graceful=False)
    thread.join()
    assert failures == []
    assert files(tmp_path / "here") == files(tmp_path / "there")


def test_a_worker_with_another_model_is_told(
    home: Path, loaded: tuple[Any, Any], cluster: Cluster, tmp_path: Path
) -> None:
    other = ImpRAGModel(tiny_lm(seed=1), ImpRAGConfig(base_model="tiny", b=1, t=3, k=3))
    save_pretrained(other, tiny_tokenizer(), tmp_path / "other")
    encoder = PassageEncoder(*loaded)
    make = on(cluster).index_shards(LoadedModel(str(tmp_path / "other"), "float32"), encoder)
    with pytest.raises(ImpRAGError, match="is another model on this machine"):
        build_index(
            Corpus.open(home / "corpus"),
            encoder,
            tmp_path / "index",
            model_fingerprint=encoder.fingerprint(),
            dimension=encoder.dimension,
            progress=False,
            make_shards=make,
        )


def test_commands_run_on_a_cluster(
    home: Path,
    cluster: Cluster,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(home)
    model = ("--model", "model", "--dtype", "float32")
    where = ("--ray", cluster.address, "--workers", "2")
    built = ("index", str(home / "corpus"), "--out", str(tmp_path / "index"), *model, *where)
    assert main([*built]) == 0
    assert "room for" not in capsys.readouterr().err
    assert main([*built[:3], str(tmp_path / "here"), *model]) == 0
    assert files(tmp_path / "index" / "index") == files(tmp_path / "here" / "index")
    assert main([*built[:-1], "0"]) == 2
    assert "at least one worker" in capsys.readouterr().err
    more = tmp_path / "more.jsonl"
    more.write_text('{"id": "p1", "text": "w5 w5 w5"}\n{"id": "new", "text": "w6 w7 w8 w9"}\n')
    monkeypatch.setattr(PassageEncoder, "__call__", None)  # here; workers embed
    assert main(["index", *built[2:], "--add", str(more)]) == 0
    assert (
        "241 passages; 2 embedded, 239 kept; 1 added, 1 replaced, 0 removed"
        in capsys.readouterr().err
    )
    assert main([*built[:-4], "--overwrite", "--kind", "hnsw", "--ray", "127.0.0.1:1"]) == 2
    error = capsys.readouterr().err
    assert "the job on Ray at 127.0.0.1:1 failed" in error
    assert "Traceback" not in error
    assert len(IndexFolder.open(tmp_path / "index").corpus) == COUNT + 1


def test_workers_that_fit_on_no_machine_are_told(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    ray.init(cluster.address)
    try:
        RayCluster(cluster.address, workers=1, worker_gpus=1)._check_room(1)
        with pytest.raises(ImpRAGError, match="no room for a worker: .* needs 1 CPU and 1 GPU; "):
            RayCluster("local", workers=1, worker_gpus=1)._check_room(1)
        RayCluster("local")._check_room(3)
    finally:
        ray.shutdown()
    note = capsys.readouterr().err
    assert "the largest machine has 1 CPU and 0 GPUs; the job waits until" in note
    assert "note: room for 2 of 3 workers: a worker needs 1 CPU and 0 GPUs; " in note
