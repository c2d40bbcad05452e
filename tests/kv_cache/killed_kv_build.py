"""Builds a KV cache in a process of its own, to be killed or measured.

Usage: killed_kv_build.py CORPUS OUT CODEC PAUSE: seconds to wait after every batch of passages.
Prints the largest resident set in KB.
"""

import resource
import sys
import time
from pathlib import Path

from test_kv_cache import tiny_imprag_model

from conftest import tiny_tokenizer
from imprag.corpus import Corpus
from imprag.kv_cache import build_kv_cache


def main(corpus: Path, out: Path, codec: str, pause: float) -> None:
    model = tiny_imprag_model()
    encode = model.encode

    def slow(*arguments, **settings):
        time.sleep(pause)
        return encode(*arguments, **settings)

    model.encode = slow
    build_kv_cache(
        Corpus.open(corpus),
        model,
        tiny_tokenizer(),
        out,
        codec=codec,
        shard_passages=100,
        progress=False,
    )
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], float(sys.argv[4]))
