"""Builds indexes in child processes and kills them; run by test_build.py, in a process of its own.

A fresh process that has not loaded torch can be forked in a millisecond, as often as needed.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pyarrow as pa
from stub_corpus import ClusterEncoder, StubCorpus

from imprag.index.build import build_index

COUNTS = {"flat": 4096, "hnsw": 4096, "ivfpq": 10_240}
DIMENSION, SHARD = 2, 512


def build(out: Path, kind: str) -> None:
    """Build an index and note in a file how many passages were encoded."""
    encoder = ClusterEncoder(DIMENSION, clusters=100)

    def encode(passages):
        with open(out.with_suffix(".encoded"), "a") as log:
            log.write(f"{len(passages)}\n")
        time.sleep(0.003)
        return encoder(passages)

    build_index(
        StubCorpus(COUNTS[kind]),
        encode,
        out,
        model_fingerprint="model-one",
        dimension=DIMENSION,
        kind=kind,
        shard_size=SHARD,
        progress=False,
    )


def start(out: Path, kind: str) -> int:
    """Process id of a child that builds."""
    if child := os.fork():
        return child
    status = 1
    try:
        build(out, kind)
        status = 0
    finally:
        os._exit(status)


def killed(child: int, after: float) -> bool:
    """Whether the child was still running then; it is not any more."""
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def main(folder: Path, kills: list[str]) -> None:
    """Kill one build for every kind named, go on with it, and print what became of it."""
    pa.array(["loads pandas where it is installed, once for all children"])
    moments = random.Random(0)
    seconds = {}
    for kind in sorted(set(kills)):
        began = time.perf_counter()
        assert os.waitpid(start(folder / kind, kind), 0)[1] == 0
        seconds[kind] = time.perf_counter() - began
    results = []
    for number, kind in enumerate(kills):
        out = folder / f"{number}-{kind}"
        # How long a build takes varies; one that was ready before its moment came is built again.
        while not killed(start(out, kind), after=moments.uniform(0, seconds[kind])):
            shutil.rmtree(out)
            out.with_suffix(".encoded").unlink()
        assert os.waitpid(start(out, kind), 0)[1] == 0
        encoded = sum(map(int, out.with_suffix(".encoded").read_text().split()))
        results.append({"kind": kind, "encoded": encoded})
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
