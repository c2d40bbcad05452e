"""Whether the passage that an answer read most is what it depends on, and what asking costs.

    python benchmarks/attribution.py --data factbook-bench                   # 200 right answers
    python benchmarks/attribution.py --data factbook-bench --parts times     # only the times

Test questions of factbook/qa are answered from ten passages until enough answers are right. Each of
those is answered again without its most-read passage, and without another one drawn at random. The
figures go to `attribution.json`. The times are those of the same stored passages with and without
attribution, in turn; nothing else should run then.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imprag import ImpRAG
from imprag.evaluation.scoring import score_answer
from imprag.evaluation.speed_arms import NEW_TOKENS, Stamps
from imprag.evaluation.speed_measure import PROMPTS
from imprag.evaluation.statistics import bootstrap_interval
from imprag.io.files import write_json
from imprag.kv_cache import RamStore
from imprag.kv_cache.codecs.base import untrained_codec
from imprag.tasks import read_tasks
from machine import origin
from performance_page import RESULTS

TASK = "factbook/qa"
PARTS = ("times", "answers")
_BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the factbook benchmark")
    parser.add_argument("--model", default="default")
    parser.add_argument("--right", type=int, default=200, help="right answers to look at")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=30, help="of the times")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the results")
    options = parser.parse_args()
    if options.k < 2:
        parser.error("--k: at least 2, so that another passage can be left out")

    path = options.out / "attribution.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    rag = ImpRAG.from_pretrained(options.model, dtype="float32")
    rag.use_kv_cache(RamStore(untrained_codec("fp32", rag.model.decoder.head_dim), 8 * 10**9))
    if "times" in options.parts:
        results["times"] = {**origin(times=True), **times(rag, options.k, options.rounds)}
        write_json(path, results)
    if "answers" in options.parts:
        found = list(right_answers(rag, options.data, options.right, options.k))
        results["answers"] = {**origin(), "k": options.k, **summary(found)}
        write_json(path, results)
    print(json.dumps(results, indent=2))


def right_answers(rag: ImpRAG, data: Path, wanted: int, k: int) -> Iterator[dict[str, Any]]:
    """What comes of leaving passages out, for one right answer after another."""
    (item,) = read_tasks([TASK], data=data, split="test")
    examples = [one for one in item.draw(None, seed=0).examples if one.gold_ids]
    order = random.Random(0)
    order.shuffle(examples)
    right = asked = 0
    for start in range(0, len(examples), _BATCH):
        some = examples[start : start + _BATCH]
        prompts = [item.task.prompt(one) for one in some]
        settings: dict[str, Any] = {"max_new_tokens": item.task.max_new_tokens, "raw": True}
        answers = rag.generate(prompts, k, attribution=True, **settings)
        for example, prompt, answer in zip(some, prompts, answers, strict=True):
            asked += 1
            if not score_answer(item.task, example, answer.text)["exact_match"]:
                continue
            assert answer.attribution is not None
            shares = answer.attribution.shares
            most = max(range(len(shares)), key=shares.__getitem__)
            other = order.choice([n for n in range(len(shares)) if n != most])
            without = [
                [one for n, one in enumerate(answer.passages) if n != left]
                for left in (most, other)
            ]
            again = rag.generate([prompt] * 2, passages=without, **settings)
            read = answer.passages[most].passage
            yield {
                "gold": read.id in example.gold_ids,
                "states_answer": any(one.lower() in read.text.lower() for one in example.answers),
                "first_ranked": most == 0,
                "first_ranked_gold": answer.passages[0].passage.id in example.gold_ids,
                "changed_without": again[0].text != answer.text,
                "changed_without_another": again[1].text != answer.text,
                "asked": asked,
            }
            right += 1
            if right == wanted:
                return
        print(f"{right} of {asked} right", flush=True)


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares with 95 % bootstrap intervals."""
    if not found:
        return {"right": 0}
    counted: dict[str, Any] = {"right": len(found), "asked": found[-1]["asked"]}
    for name in found[0]:
        if name != "asked":
            hits = [float(one[name]) for one in found]
            interval = list(bootstrap_interval(hits))
            counted[name] = {"share": sum(hits) / len(hits), "interval": interval}
    return counted


def times(rag: ImpRAG, k: int, rounds: int) -> dict[str, Any]:
    """Medians of the first token and of tokens per second, without and with attribution."""
    measured: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for number in range(rounds + len(PROMPTS)):
        for asks, found in measured.items():
            stamps, start = Stamps(), time.perf_counter()
            rag.ask(
                PROMPTS[number % len(PROMPTS)], k, max_new_tokens=NEW_TOKENS, eos_token_id=None,
                stop=(), logits_processor=[stamps], attribution=asks, raw=True,
            )  # fmt: skip
            first, *_, last = stamps.times
            if number >= len(PROMPTS):  # whose passages have been encoded
                found.append((first - start, (len(stamps.times) - 1) / (last - first)))
    (first, rate), (first_asked, rate_asked) = (
        [statistics.median(column) for column in zip(*found, strict=True)]
        for found in measured.values()
    )
    return {
        "rounds": rounds,
        "k": k,
        "first_token": [first, first_asked],
        "tokens_per_second": [rate, rate_asked],
        "ratios": [first_asked / first, rate_asked / rate],
    }


if __name__ == "__main__":
    main()
