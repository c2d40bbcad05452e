"""Cost of KV codecs in answers.

    python benchmarks/kv_quality.py --data factbook-bench                  # 500 of factbook/qa
    python benchmarks/kv_quality.py --task squad=held-out.jsonl --corpus passages.jsonl --limit 300

Every question reads one of its gold passages, from keys and values that each codec has coded and
decoded, as from a KV cache folder; the last arm drops half of the tokens. Codecs learn from 256
passages of the corpus. The figures go to `kv_quality.json`, which `performance.py --page` shows;
other tasks there are kept. Rerun after an interruption: finished arms of the same commit, model and
questions are reused.
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imprag.corpus import Corpus, Passage
from imprag.evaluation.passage_sources import Question, choose_corpus, gold_passages
from imprag.evaluation.scoring import score_answer
from imprag.evaluation.statistics import bootstrap_interval, paired_bootstrap
from imprag.io.files import write_json
from imprag.kv_cache import RamStore
from imprag.kv_cache.build import fit_codec
from imprag.kv_cache.cache import block_to_code, encode_parts
from imprag.kv_cache.codecs.base import Codec, Parts, needs_fit, untrained_codec
from imprag.pipeline import ImpRAG
from imprag.retrieval.retriever import RetrievedPassage
from imprag.tasks import read_tasks
from machine import origin
from performance_page import RESULTS

CODECS = ("bf16", "int8", "pq")
EXACT = "fp32"
HALF = "fp32, half of the tokens"
_SAMPLE = 256  # passages that codecs learn from
_RAM = 6 * 10**9


class Recoded:
    """A store that codes the states of another, which are exact."""

    kv_keep_ratio = 1.0

    def __init__(self, rag: ImpRAG, exact: RamStore, codec: Codec) -> None:
        self.rag = rag
        self.exact = exact
        self.codec = codec

    def get(self, passages: Sequence[Passage]) -> list[Parts | None]:
        rag, exact = self.rag, self.exact
        found = exact.get(passages)
        missing = [one for one, parts in zip(passages, found, strict=True) if parts is None]
        made = iter(encode_parts(rag.model, rag.tokenizer, missing, exact.codec))
        coded: list[Parts | None] = []
        for passage, parts in zip(passages, found, strict=True):
            if parts is None:
                parts = next(made)
                exact.put(passage, parts)
            coded.append(self.codec.encode(block_to_code(rag.model, self.codec, parts["states"])))
        return coded

    def put(self, passage: Passage, parts: Parts) -> None:
        """Do nothing: `get` lacks none."""


def fitted(name: str, rag: ImpRAG, corpus: Corpus) -> Codec:
    """A codec that has learned from passages of the corpus."""
    codec = untrained_codec(name, rag.model.decoder.head_dim)
    if needs_fit(codec):
        rows = random.Random(0).sample(range(len(corpus)), min(_SAMPLE, len(corpus)))
        fit_codec(codec, corpus.passages(rows), rag.model, rag.tokenizer)
    return codec


def store_of(name: str, rag: ImpRAG, corpus: Corpus, exact: RamStore) -> tuple[Any, float]:
    """What an arm reads passages from, and the bytes that it takes for a head vector."""
    if name == HALF:
        codec = untrained_codec(EXACT, rag.model.decoder.head_dim)
        return RamStore(codec, _RAM, kv_keep_ratio=0.5), codec.bytes_per_vector / 2
    codec = fitted(name, rag, corpus)
    return Recoded(rag, exact, codec), codec.bytes_per_vector


def answered(
    rag: ImpRAG, questions: Sequence[Question], passages: Sequence[Sequence[RetrievedPassage]]
) -> list[str]:
    """The answers to questions of one task."""
    answers = rag.generate(
        [question.prompt for question in questions],
        passages=passages,
        max_new_tokens=questions[0].task.max_new_tokens,
        batch_size=16,
        raw=True,
    )
    return [answer.text for answer in answers]


def arm(
    name: str, size: float, answers: Sequence[str], first: Sequence[str], asked: Sequence[Question]
) -> dict[str, Any]:
    """The figures of a codec, with differences from the exact one."""

    def matches(given: Sequence[str]) -> list[float]:
        pairs = zip(asked, given, strict=True)
        return [score_answer(one.task, one.example, text)["exact_match"] for one, text in pairs]

    scores = matches(answers)
    found = paired_bootstrap(scores, matches(first))
    same = [one == other for one, other in zip(answers, first, strict=True)]
    return {
        "arm": name,
        "bytes": size,
        "same_answer": sum(same) / len(same),
        "exact_match": {
            "mean": sum(scores) / len(scores),
            "interval": list(bootstrap_interval(scores)),
            "difference": found.difference,
            "difference_interval": list(found.interval),
        },
        "answers": list(answers),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="default")
    parser.add_argument("--data", type=Path, help="a benchmark folder")
    parser.add_argument("--task", default="factbook/qa", help="its name, or TASK=FILE")
    parser.add_argument("--corpus", help="of the gold passages; by default the benchmark's")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of the questions drawn")
    parser.add_argument("--codecs", nargs="+", default=(*CODECS, HALF))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the results")
    parser.add_argument("--json", action="store_true", help="print the figures, too")
    given = parser.parse_args(arguments)

    (item,) = read_tasks([given.task], data=given.data, split=given.split)
    examples = [one for one in item.draw(given.limit, given.seed).examples if one.gold_ids]
    asked = [Question(item.task, one, item.task.prompt(one)) for one in examples]
    corpus = choose_corpus(given.corpus, None, given.data)
    passages = gold_passages(corpus).find(asked, 1)
    rag = ImpRAG.from_pretrained(given.model, dtype=given.dtype)

    path = given.out / "kv_quality.json"
    tasks = json.loads(path.read_text()) if path.exists() else {}
    drawn = {"n": len(asked), "seed": given.seed, "dtype": given.dtype, "passages": "gold, one"}
    made = {**origin(), **drawn}
    before = tasks.get(item.task.name, {})
    compared = ("commit", "model_fingerprint", *drawn)
    known = {one["arm"]: one for one in before.get("arms", ())}
    if any(before.get(name) != made[name] for name in compared):
        known = {}
    exact = RamStore(untrained_codec(EXACT, rag.model.decoder.head_dim), _RAM)
    arms: list[dict[str, Any]] = []
    for name in (EXACT, *given.codecs):
        if name not in known:
            store, size = store_of(name, rag, corpus, exact)
            rag.use_kv_cache(store)
            answers = answered(rag, asked, passages)
            first = arms[0]["answers"] if arms else answers
            known[name] = arm(name, size, answers, first, asked)
        arms.append(known[name])
        tasks[item.task.name] = {**made, "arms": arms}
        write_json(path, tasks)
        print(json.dumps({**arms[-1], "answers": len(asked)}) if given.json else f"{name} done")


if __name__ == "__main__":
    main()
