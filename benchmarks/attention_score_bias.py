"""Answer quality by attention score bias and number of passages.

    python benchmarks/attention_score_bias.py --data factbook-bench --out runs/score-bias

All arms answer the same questions with the model's own retrieval. Passage KV is computed once and
kept in RAM as float32, so that it equals freshly encoded KV. Rerun after an interruption: finished
batches are reused.
"""

import argparse
from pathlib import Path

from imprag.evaluation.compare import compare
from imprag.evaluation.passage_sources import own_retrieval
from imprag.evaluation.runner import evaluate
from imprag.io.files import write_json
from imprag.kv_cache import RamStore
from imprag.kv_cache.codecs.base import untrained_codec
from imprag.pipeline import ImpRAG
from imprag.tasks import read_tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="default")
    parser.add_argument("--index", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=["factbook/qa"])
    parser.add_argument("--split", default="dev")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--weights", nargs="+", type=float, default=[0, 0.5, 1, 2, 4])
    parser.add_argument("--k", nargs="+", type=int, default=[10])
    parser.add_argument("--ram", type=float, default=6e9, help="bytes of the KV store in RAM")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()

    tasks = read_tasks(given.tasks, data=given.data, split=given.split)
    rag = ImpRAG.from_pretrained(given.model, given.index, dtype=given.dtype)
    source = own_retrieval(rag)
    store = RamStore(untrained_codec("fp32", rag.model.decoder.head_dim), int(given.ram))
    arms = []
    for k in given.k:
        for weight in given.weights:
            model = rag.model.with_settings(attention_score_bias=weight)
            reader = ImpRAG(model, rag.tokenizer, rag.index)
            reader.use_kv_cache(store)
            arms.append(given.out / f"k={k}, weight {weight:g}")
            evaluate(reader, tasks, arms[-1], source=source, k=k, limit=given.limit, batch_size=16)
            print(f"{arms[-1].name} finished", flush=True)
    found = compare(arms, ["exact_match", "accuracy"])
    write_json(given.out / "answers.json", found.to_json())
    (given.out / "answers.md").write_text(found.to_markdown(), encoding="utf-8")
    print(found.to_markdown())


if __name__ == "__main__":
    main()
