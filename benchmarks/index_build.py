"""Size, build time, search time and recall of the index kinds, on synthetic clusters.

    python benchmarks/index_build.py                          # 100,000 passages, 192 dimensions
    python benchmarks/index_build.py --passages 1000000 --kinds ivfpq --json
    python benchmarks/index_build.py --kinds milvus=http://localhost:19530 pgvector=postgresql://localhost/vectors

A kind whose vectors lie on a server is named with the server's URI; what the server holds is
deleted at the end, and memory and bytes are those on this side only.

Each kind is built, opened and searched in its own process, so that its memory can be measured.
Clusters overlap (2,000 centres, noise as wide as their spread), and dimensions differ in scale.
Recall is the fraction of the ten best passages of flat search; search time is the median over
single queries and, separately, over batches of 64. Set OMP_NUM_THREADS to fix the number of
threads.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from imprag.corpus.passage import Passage
from imprag.index import PassageIndex, build_index
from imprag.index.passage_index import drop_vectors


class Clusters:
    """A corpus of numbered passages, and the encoder that generates their embeddings."""

    fingerprint = "clusters"

    def __init__(self, count: int, dimension: int) -> None:
        random = np.random.default_rng(0)
        self.count = count
        self.centres = random.standard_normal((2000, dimension), dtype=np.float32)
        self.scale = np.exp(random.normal(0, 0.7, dimension)).astype(np.float32)

    def __len__(self) -> int:
        return self.count

    def passages(self, rows: Sequence[int]) -> list[Passage]:
        return [Passage(f"passage {row:09}", "", "no text") for row in rows]

    def __call__(self, passages: Sequence[Passage]) -> np.ndarray:
        return self.vectors(len(passages), seed=int(passages[0].id.split()[1]))

    def vectors(self, count: int, seed: int) -> np.ndarray:
        random = np.random.default_rng([seed, 1])
        noise = random.standard_normal((count, len(self.scale)), dtype=np.float32)
        return (self.centres[random.integers(0, 2000, count)] + noise) * self.scale


def measure(task: tuple[str, str, int, int, Path]) -> dict[str, Any]:
    """Build one index, then open and search it."""
    named, dtype, count, dimension, folder = task
    kind, _, location = named.partition("=")
    clusters = Clusters(count, dimension)
    path = folder / f"{kind}-{dtype}"
    start = time.perf_counter()
    build_index(
        clusters, clusters, path, model_fingerprint="none", dimension=dimension, kind=kind,
        dtype=dtype, location=location, progress=False,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    queries = clusters.vectors(200, seed=10**9)
    own = own_memory()
    start = time.perf_counter()
    index = PassageIndex.open(path)
    opening = time.perf_counter() - start
    _, ids = index.search(queries, 10)
    own = own_memory() - own
    single = median(lambda i: index.search(queries[i : i + 1], 10), 100)
    batch = median(lambda i: index.search(queries[:64], 10), 5)
    size = sum(file.stat().st_size for file in path.iterdir())
    drop_vectors(path)
    return {
        "kind": kind,
        "dtype": dtype,
        "build_seconds": seconds,
        "peak_memory_mb": peak / 1e6,
        "bytes_per_passage": size / count,
        "open_seconds": opening,
        "own_memory_opened_mb": own / 1e6,
        "ms_per_query": 1000 * single,
        "ms_per_query_in_64": 1000 * batch / 64,
        "ids": ids,
    }


def own_memory() -> int:
    """Bytes of memory that are not mapped from files."""
    info = psutil.Process().memory_info()
    return int(info.rss - getattr(info, "shared", 0))


def median(call: Callable[[int], Any], rounds: int) -> float:
    """Median seconds of a call, after a warm-up call."""
    call(0)
    times = []
    for number in range(rounds):
        start = time.perf_counter()
        call(number)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=192)
    parser.add_argument("--kinds", nargs="+", default=["ivfpq", "hnsw"])
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in dict.fromkeys(["flat", *args.kinds]):
            task = (kind, args.dtype, args.passages, args.dimension, Path(folder))
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                rows.append(process.submit(measure, task).result())
    exact = rows[0]["ids"]
    for row in rows:
        pairs = zip(exact, row.pop("ids"), strict=True)
        row["recall_at_10"] = float(np.mean([len(set(a) & set(b)) / 10 for a, b in pairs]))
    if args.json:
        print(json.dumps({"passages": args.passages, "dimension": args.dimension, "kinds": rows}))
        return
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        cells = (f"{cell:.3g}" if isinstance(cell, float) else cell for cell in row.values())
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
