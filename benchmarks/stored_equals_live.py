"""Whether answers from stored passage KV are those of passages encoded at once, token for token.

    python benchmarks/stored_equals_live.py --data factbook-bench --prompts 1000

Greedy answers in float32 to test prompts of several tasks, from each prompt's own first passages:
read live, and read from a store in RAM that other prompts have filled. Reports how many are the
same, and those that are not.
"""

import argparse
from pathlib import Path

from imprag import ImpRAG
from imprag.io.files import write_json
from imprag.kv_cache import RamStore
from imprag.kv_cache.codecs.base import untrained_codec
from imprag.tasks import read_tasks
from machine import origin
from performance_page import RESULTS

TASKS = ("factbook/qa", "factbook/qa_unseen", "factbook/fever", "factbook/zsre")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the factbook benchmark")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the results")
    parser.add_argument("--model", default="default")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=16)
    options = parser.parse_args()
    live = ImpRAG.from_pretrained(options.model, dtype="float32")
    stored = ImpRAG(live.model, live.tokenizer, live.index, retrieval=live.retrieval)
    stored.use_kv_cache(RamStore(untrained_codec("fp32", live.model.decoder.head_dim), 12 * 10**9))
    prompts = [
        tasks.task.prompt(example)
        for tasks in read_tasks(TASKS, data=options.data, split="test")
        for example in tasks.draw(options.prompts // len(TASKS), seed=0).examples
    ]
    different = []
    for start in range(0, len(prompts), 8):
        batch = prompts[start : start + 8]
        passages = live.retrieve(batch, options.k, raw=True)
        arguments = {"passages": passages, "max_new_tokens": options.tokens, "raw": True}
        answers = [rag.generate(batch, **arguments) for rag in (live, stored)]  # type: ignore[arg-type]
        for prompt, one, other in zip(batch, *answers, strict=True):
            if one.text != other.text:
                different.append({"prompt": prompt, "live": one.text, "stored": other.text})
        print(f"{start + len(batch)} prompts, {len(different)} different", flush=True)
    write_json(
        options.out / "stored_equals_live.json",
        {**origin(), "prompts": len(prompts), "k": options.k, "different": different},
    )


if __name__ == "__main__":
    main()
