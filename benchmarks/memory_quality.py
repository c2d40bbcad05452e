"""Exact match with each passage encoding, codec and share of kept tokens, beside live reading.

    python benchmarks/memory_quality.py --model runs/factbook/model --index runs/factbook-index \
        --data factbook-bench --out runs/memory-quality

Every arm answers the same questions with the model's own retrieval; the tables of the paper's
appendix C in small. States are coded and decoded in RAM, as a memory folder would give them. An
interrupted run goes on where it stopped.
"""

import argparse
import dataclasses
import json
import random
from pathlib import Path

from imprag.evaluation.passage_sources import own_retrieval
from imprag.evaluation.runner import evaluate
from imprag.memory import RamStore
from imprag.memory.build import learn_quantizer
from imprag.memory.codecs import untrained_codec
from imprag.model import LayerGroups
from imprag.rag import ImpRAG
from imprag.tasks import read_tasks

ENCODINGS = ("segmented", "full")
MEMORIES = (("bf16", 1.0), ("int8", 1.0), ("int4", 1.0), ("pq", 1.0), ("bf16", 0.5), ("pq", 0.5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="default")
    parser.add_argument("--index", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--task", default="factbook/qa")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--k", type=int)
    parser.add_argument("--ram", type=float, default=4e9, help="bytes of the store")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()

    tasks = read_tasks([given.task], data=given.data, split=given.split)
    rag = ImpRAG.from_pretrained(given.model, given.index)
    rows = random.Random(0).sample(range(len(rag.corpus)), 256)
    results = {}

    def run(name: str, reader: ImpRAG) -> None:
        found = evaluate(
            reader, tasks, given.out / name, source=own_retrieval(rag), k=given.k, limit=given.limit
        )
        metrics = found["tasks"][given.task]["metrics"]
        results[name] = {key: metrics[key] for key in ("exact_match", "f1")}
        print(name, json.dumps(results[name]["exact_match"]), flush=True)

    run("live", rag)
    for encoding in ENCODINGS:
        config = dataclasses.replace(rag.config, passage_encoding=encoding)
        run(encoding, ImpRAG(LayerGroups(rag.groups.lm, config), rag.tokenizer, rag.index))
    for codec, keep_tokens in MEMORIES:
        coder = (
            learn_quantizer(rag.corpus.passages(rows), rag.groups, rag.tokenizer)
            if codec == "pq"
            else untrained_codec(codec, rag.groups.head_dim)
        )
        rag.use_memory(RamStore(coder, int(given.ram), keep_tokens))
        run(f"{codec}-{keep_tokens}", rag)
    (given.out / "quality.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
