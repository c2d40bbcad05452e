"""Builds the KV cache of a corpus without interruption, killed twice, and of a tenth of the corpus.

    python benchmarks/kv_build.py --codec pq --out runs/kv-build

Reports the time, size and largest resident set of each build, and whether the killed build has the
same bytes. Each build runs in its own process; finished builds are not repeated.
"""

import argparse
import filecmp
import json
import multiprocessing
import resource
import shutil
import time
from pathlib import Path
from typing import Any

from imprag.corpus import load_corpus
from imprag.io.building import building_folder, numbered_files
from imprag.kv_cache import build_kv_cache
from imprag.model import load_pretrained

BOTH = ("whole", "killed")


def build(model: str, corpus: str, share: int, out: Path, codec: str, report: Path) -> None:
    """Build the KV cache of one in ``share`` passages and write a report."""
    model, tokenizer = load_pretrained(model, "float32")
    passages = load_corpus(corpus)
    start = time.perf_counter()
    rows = range(0, len(passages), share)
    store = build_kv_cache(passages, model, tokenizer, out, codec=codec, rows=rows)
    facts = {
        "passages": len(store),
        "shards": len(store.manifest.shards),
        "seconds": time.perf_counter() - start,
        "bytes_per_passage": store.manifest.summary()["bytes_per_passage"],
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }
    report.write_text(json.dumps(facts), encoding="utf-8")


def run(given: argparse.Namespace, name: str, share: int, kills: tuple[int, ...]) -> dict[str, Any]:
    """The report of a build whose process is killed at each of these numbers of shards."""
    out, report = given.out / name, given.out / f"{name}.json"
    arguments = (given.model, given.corpus, share, out, given.codec, report)
    parts = building_folder(out) / "parts"
    spawn = multiprocessing.get_context("spawn")
    for kill in kills if not report.exists() else ():
        process = spawn.Process(target=build, args=arguments)
        process.start()
        while process.is_alive() and len(numbered_files(parts)) < kill:
            time.sleep(0.2)
        if not process.is_alive():
            raise SystemExit(f"{name} ended before it had {kill} shards; choose a larger corpus")
        process.kill()
        process.join()
        print(f"{name}: killed with {len(numbered_files(parts))} shards", flush=True)
    if not report.exists():
        process = spawn.Process(target=build, args=arguments)
        process.start()
        process.join()
    facts: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    print(f"{name}: {facts}", flush=True)
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="default")
    parser.add_argument("--corpus", default="factbook")
    parser.add_argument("--codec", default="pq")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)

    tenth = run(given, "tenth", 10, ())
    whole = run(given, "whole", 1, ())
    killed = run(given, "killed", 1, (whole["shards"] // 3, 2 * whole["shards"] // 3))
    names = [sorted(path.name for path in (given.out / name).iterdir()) for name in BOTH]
    _, *other = filecmp.cmpfiles(*(given.out / name for name in BOTH), names[0], shallow=False)
    found = {
        "tenth": tenth,
        "whole": whole,
        "killed": killed,
        "same_bytes": names[0] == names[1] and not any(other),
        "peak_memory_growth": whole["peak_memory_mb"] / tenth["peak_memory_mb"] - 1,
    }
    shutil.rmtree(given.out / "killed")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
