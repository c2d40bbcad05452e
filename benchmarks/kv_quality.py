"""Answer quality by KV codec, kv_keep_ratio and passage encoding.

    python benchmarks/kv_quality.py --data factbook-bench --out runs/kv-quality

A small version of the paper's tables 6 and 8. All arms answer the same questions with the model's
own retrieval. Passage KV is computed once and kept in RAM; each arm reads it encoded and decoded by
its codec, as from a KV cache folder. ``fp32`` equals reading without a cache. Rerun after an
interruption: finished batches are reused.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

from imprag.corpus import Passage
from imprag.evaluation.compare import compare
from imprag.evaluation.passage_sources import own_retrieval
from imprag.evaluation.runner import evaluate
from imprag.io.files import write_json
from imprag.kv_cache import RamStore
from imprag.kv_cache.build import fit_codec
from imprag.kv_cache.cache import encode_parts
from imprag.kv_cache.codecs.base import Codec, Parts, needs_fit, untrained_codec
from imprag.pipeline import ImpRAG
from imprag.tasks import read_tasks

CODECS = ("bf16", "int8", "int4", "pq")
HALVED = ("bf16", "pq")
ENCODINGS = ("segmented", "full")


class Recoded:
    """A store of KV encoded by a codec, backed by a store of float32 KV."""

    def __init__(self, rag: ImpRAG, exact: RamStore, codec: Codec) -> None:
        self.rag = rag
        self.exact = exact
        self.codec = codec
        self.kv_keep_ratio = exact.kv_keep_ratio

    def get(self, passages: Sequence[Passage]) -> list[Parts | None]:
        found = self.exact.get(passages)
        lacking = [one for one, parts in zip(passages, found, strict=True) if parts is None]
        rag = self.rag
        made = iter(
            encode_parts(rag.model, rag.tokenizer, lacking, self.exact.codec, self.kv_keep_ratio)
        )
        coded: list[Parts | None] = []
        for passage, parts in zip(passages, found, strict=True):
            if parts is None:
                parts = next(made)
                self.exact.put(passage, parts)
            coded.append(self.codec.encode(parts["states"]))
        return coded

    def put(self, passage: Passage, parts: Parts) -> None:
        """Do nothing: `get` already adds passages to the float32 store."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="default")
    parser.add_argument("--index", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--task", default="factbook/qa")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--k", type=int)
    parser.add_argument("--ram", type=float, default=6e9, help="bytes of each KV store in RAM")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()

    tasks = read_tasks([given.task], data=given.data, split=given.split)
    rag = ImpRAG.from_pretrained(given.model, given.index, dtype=given.dtype)
    source = own_retrieval(rag)
    arms = []

    def run(name: str, reader: ImpRAG) -> None:
        arms.append(given.out / name)
        options = {"source": source, "k": given.k, "limit": given.limit, "batch_size": 16}
        evaluate(reader, tasks, arms[-1], **options)
        print(f"{name} finished", flush=True)

    def codec(name: str) -> Codec:
        made = untrained_codec(name, rag.model.decoder.head_dim)
        if needs_fit(made):
            rows = random.Random(0).sample(range(len(rag.corpus)), 256)
            fit_codec(made, rag.corpus.passages(rows), rag.model, rag.tokenizer)
        return made

    coders = {name: codec(name) for name in ("fp32", *CODECS)}
    for share, names in ((1.0, ("fp32", *CODECS)), (0.5, HALVED)):
        exact = RamStore(coders["fp32"], int(given.ram), share)
        for name in names:
            rag.use_kv_cache(Recoded(rag, exact, coders[name]))
            run(name if share == 1 else f"{name}, half of the tokens", rag)
    for encoding in ENCODINGS:
        model = rag.model.with_settings(passage_encoding=encoding)
        run(encoding, ImpRAG(model, rag.tokenizer))
    found = compare(arms, ["exact_match", "f1"])
    write_json(given.out / "quality.json", found.to_json())
    (given.out / "quality.md").write_text(found.to_markdown(), encoding="utf-8")
    print(found.to_markdown())


if __name__ == "__main__":
    main()
