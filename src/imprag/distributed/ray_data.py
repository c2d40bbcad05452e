"""Embedding a corpus and building a KV cache with Ray Data, on one machine or many.

Workers, each with a model of its own, make the same shards as a single process; they come back to
the process that writes them, so that an interrupted job goes on like any other build. The corpus is
read from its folder, which every machine must see under the same path. A worker or a machine that
is lost costs its unfinished shards, which Ray gives to others.
"""

import contextlib
import logging
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch

from imprag.corpus import Corpus
from imprag.errors import ImpRAGError
from imprag.index.build import shard_content as index_shard
from imprag.io.files import expand_home
from imprag.io.optional import require
from imprag.kv_cache.build import shard_content as kv_shard
from imprag.kv_cache.codecs.base import Codec, needs_fit, untrained_codec
from imprag.kv_cache.manifest import states_fingerprint
from imprag.model.load import DEFAULT, load_pretrained
from imprag.model.passage_encoder import PassageEncoder

LOCAL = "local"
Shards = Mapping[int, Sequence[int]]


@dataclass(frozen=True)
class LoadedModel:
    """Which model a worker loads, by the arguments of :func:`imprag.model.load_pretrained`.

    Attributes:
        name, dtype, device: as there; a folder or file must be there on every machine. Its path
            becomes absolute, because workers run in other folders.
        compile: compile the layers that embed.
    """

    name: str
    dtype: str = "auto"
    device: str = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        path = expand_home(self.name)
        if self.name != DEFAULT and path.exists():
            object.__setattr__(self, "name", str(path.resolve()))

    def load(self) -> tuple[Any, Any]:
        """The model and its tokenizer."""
        model, tokenizer = load_pretrained(self.name, self.dtype, self.device)
        if self.compile:
            model.compile_bottom()
        return model, tokenizer


class _Worker:
    """Makes shards; Ray Data keeps one for each place and calls it with one shard at a time.

    Args:
        corpus: the folder of the corpus.
        fingerprint: of the corpus.
    """

    def __init__(self, corpus: str, fingerprint: str) -> None:
        self.corpus = Corpus.open(Path(corpus))
        if self.corpus.fingerprint != fingerprint:
            raise ImpRAGError(f"{corpus} is another corpus on this machine")

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        contents = np.empty(len(batch["number"]), object)
        contents[:] = [self.make(rows.tolist()) for rows in batch["rows"]]
        return {"number": batch["number"], "content": contents}

    def make(self, rows: list[int]) -> bytes:
        """The content of a shard's file."""
        raise NotImplementedError


class _IndexWorker(_Worker):
    def __init__(
        self, corpus: str, fingerprint: str, model: LoadedModel, made_by: str, **settings: Any
    ) -> None:
        super().__init__(corpus, fingerprint)
        self.encoder = PassageEncoder(*model.load())
        _check_model(self.encoder.fingerprint(), made_by, model.name)
        self.settings = settings

    def make(self, rows: list[int]) -> bytes:
        return index_shard(
            self.encoder,
            passages=self.corpus,
            rows=range(rows[0], rows[-1] + 1),
            note=lambda count: None,
            **self.settings,
        )


class _KVWorker(_Worker):
    def __init__(
        self,
        corpus: str,
        fingerprint: str,
        model: LoadedModel,
        made_by: str,
        codec: str,
        learned: bytes,
    ) -> None:
        super().__init__(corpus, fingerprint)
        self.model, self.tokenizer = model.load()
        _check_model(states_fingerprint(self.model, self.tokenizer), made_by, model.name)
        self.codec = untrained_codec(codec, self.model.decoder.head_dim)
        if learned:
            self.codec.load_state(safetensors.torch.load(learned))

    def make(self, rows: list[int]) -> bytes:
        passages = self.corpus.passages(rows)
        return kv_shard(self.model, self.tokenizer, passages, self.codec)


def _check_model(own: str, wanted: str, name: str) -> None:
    if own != wanted:
        raise ImpRAGError(f"{name} is another model on this machine")


@dataclass(frozen=True)
class RayCluster:
    """Where shards are made.

    Attributes:
        address: of a running cluster, such as ``ray://head:10001`` or ``auto``; ``local`` starts
            one on this machine.
        workers: number of models at once.
        worker_gpus: GPUs for each; a share lets several use one.
        worker_cpus: CPU cores for each.

    Raises:
        ImpRAGError: Ray is not installed, or a number makes no sense.
    """

    address: str = LOCAL
    workers: int = 2
    worker_gpus: float = 0
    worker_cpus: int = 1

    def __post_init__(self) -> None:
        require("a build on many machines", "ray", "ray")
        if self.workers < 1 or self.worker_cpus < 1 or self.worker_gpus < 0:
            raise ImpRAGError(
                "there must be at least one worker with one core, and no negative number of GPUs"
            )

    def check(self) -> None:
        """Refuse a cluster that does not answer, before a build deletes anything.

        Raises:
            ImpRAGError: it does not.
        """
        try:
            _check_reachable(self.address)
        except OSError as error:
            raise self._failed(error) from error

    def index_shards(
        self, model: LoadedModel, encoder: PassageEncoder, dtype: str = "float16"
    ) -> Callable[..., Iterator[tuple[int, bytes]]]:
        """What :func:`imprag.index.build_index` takes as ``make_shards``.

        Args:
            model: that workers load.
            encoder: the same model here.
            dtype: of the index.
        """
        made_by, dimension = encoder.fingerprint(), encoder.dimension

        def make(
            passages: Corpus, batch_size: int, missing: Mapping[int, range], note: Any
        ) -> Iterator[tuple[int, bytes]]:
            arguments = {
                **_corpus(passages),
                "model": model,
                "made_by": made_by,
                "dimension": dimension,
                "dtype": dtype,
                "batch_size": batch_size,
            }
            for number, content in self._run(_IndexWorker, arguments, missing):
                note(len(missing[number]))
                yield number, content

        return make

    def kv_shards(
        self, model: LoadedModel, made_by: str
    ) -> Callable[..., Iterator[tuple[int, bytes]]]:
        """What :func:`imprag.kv_cache.build_kv_cache` takes as ``make_shards``.

        Args:
            model: that workers load.
            made_by: the fingerprint of its states.
        """

        def make(corpus: Corpus, codec: Codec, missing: Shards) -> Iterator[tuple[int, bytes]]:
            arguments = {
                **_corpus(corpus),
                "model": model,
                "made_by": made_by,
                "codec": codec.name,
                "learned": safetensors.torch.save(codec.state()) if needs_fit(codec) else b"",
            }
            return self._run(_KVWorker, arguments, missing)

        return make

    def _check_room(self, workers: int) -> None:
        """Compare what workers need with the machines of the cluster.

        A cluster that others started may grow, so that a job on it waits; a note says so.

        Args:
            workers: number of them that have work.

        Raises:
            ImpRAGError: no worker fits on this machine.
        """
        import ray

        needs = {"CPU": float(self.worker_cpus), "GPU": self.worker_gpus}
        machines = [one["Resources"] for one in ray.nodes() if one["Alive"]]
        room = sum(
            min(int(machine.get(name, 0) / need) for name, need in needs.items() if need)
            for machine in machines
        )
        if room >= workers:
            return
        most = {name: max((one.get(name, 0) for one in machines), default=0) for name in needs}
        needed = f"a worker needs {_resources(needs)}; the largest machine has {_resources(most)}"
        if room:
            print(f"note: room for {room} of {workers} workers: {needed}", file=sys.stderr)
        elif self.address == LOCAL:
            raise ImpRAGError(f"no room for a worker: {needed}")
        else:
            wait = "the job waits until the cluster has grown, or is stopped"
            print(f"note: no room for a worker: {needed}; {wait}", file=sys.stderr)

    def _run(
        self, worker: type[_Worker], arguments: dict[str, Any], missing: Shards
    ) -> Iterator[tuple[int, bytes]]:
        """The numbers and contents of shards, as they get ready."""
        if not missing:
            return
        import ray.data
        from ray.exceptions import RayError

        try:
            with _connection(self.address):
                workers = min(self.workers, len(missing))
                self._check_room(workers)
                # One block for each shard: what is lost with a machine is made again.
                rows = [{"number": n, "rows": np.array(one)} for n, one in missing.items()]
                shards = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                    worker,
                    batch_size=1,
                    compute=ray.data.ActorPoolStrategy(size=workers),
                    num_cpus=self.worker_cpus,
                    num_gpus=self.worker_gpus or None,
                    fn_constructor_kwargs=arguments,
                )
                for row in shards.iter_rows():
                    yield int(row["number"]), row["content"]
        except (RayError, OSError, ValueError) as error:
            if isinstance(error, ImpRAGError) and not isinstance(error, RayError):
                raise  # of this process: it says all
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> ImpRAGError:
        return ImpRAGError(
            f"the job on Ray at {self.address} failed: {_cause(error)}; what is finished is kept, "
            "and the same command goes on"
        )


@contextlib.contextmanager
def _connection(address: str) -> Iterator[None]:
    """A connection to a cluster; the one that this process has already is used and kept."""
    import ray

    if ray.is_initialized():
        yield
        return
    _check_reachable(address)
    # Workers import what this process does, and their own words go to Ray's log files.
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    for name in ("ray", "ray.data"):  # an error is told by its own line, without a traceback
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Refuse a cluster that does not answer; Ray itself tries for minutes.

    Raises:
        OSError: it does not.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


def _resources(amounts: Mapping[str, float]) -> str:
    counts = (f"{n:g} {name}{'' if n == 1 else 's'}" for name, n in amounts.items())
    return " and ".join(counts)


def _corpus(corpus: Corpus) -> dict[str, str]:
    return {"corpus": str(corpus.path.resolve()), "fingerprint": corpus.fingerprint}


def _cause(error: BaseException) -> str:
    """What went wrong, perhaps in a worker, whose traceback is in the error's text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    own = f"{ImpRAGError.__module__}.{ImpRAGError.__name__}: "
    found = next((line for line in reversed(lines) if line.startswith(own)), None)
    return (found or (lines or [type(error).__name__])[-1]).removeprefix(own)[:300]
