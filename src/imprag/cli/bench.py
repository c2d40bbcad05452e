"""``imprag bench``."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from imprag.cli.options import DEFAULT_MODEL, Flag, ModelOptions
from imprag.errors import ImpRAGError

Numbers = Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative="")]
Codecs = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")]

NUMBERS = (1, 5, 10, 20)
LENGTHS = (64, 128, 256)
CODECS = ("bf16", "int8", "pq")


def bench(
    *,
    out: Path,
    model: ModelOptions = DEFAULT_MODEL,
    k: Numbers = NUMBERS,
    passage_tokens: Numbers = LENGTHS,
    codecs: Codecs = CODECS,
    quick: Flag = False,
) -> None:
    """Measure time and memory of answers, compared with in-context RAG by the same model.

    In-context RAG retrieves with all-MiniLM-L6-v2 and puts the passages before the prompt. All arms
    answer the same prompts in turn, with 16 new tokens and passages of the same length; figures are
    medians of 30 runs. Run nothing else meanwhile. An arm that fails is left out and named; the
    results of the others are kept.

    For example:

    - `imprag bench --out bench --quick`
    - `imprag bench --out bench --model my-model --k 5 10 --passage-tokens 128`

    Args:
        out: The folder for the results (`speed.json`, `speed.md`), the plots, and the indexes and
            KV caches that are measured.
        k: Numbers of passages to measure with.
        passage_tokens: Lengths of passages to measure with, in tokens.
        codecs: Codecs of the KV caches that are read.
        quick: Measure only 10 passages of 128 tokens, 6 runs: about four minutes.
    """
    from imprag.corpus import load_corpus
    from imprag.evaluation import speed
    from imprag.evaluation.speed_report import table, write_results
    from imprag.io.optional import note_without
    from imprag.retrieval.dense import require_teacher

    if not k or not passage_tokens or min(*k, *passage_tokens) < 1:
        raise ImpRAGError("numbers and lengths of passages must be at least 1")
    if quick and (k, passage_tokens) != (NUMBERS, LENGTHS):
        raise ImpRAGError(
            "--quick has its own numbers and lengths: leave out --k and --passage-tokens"
        )
    if quick:
        k, passage_tokens = (10,), (128,)
    require_teacher()
    note_without("plots", "eval", "matplotlib")
    corpus = load_corpus("factbook")
    rag = model.load()
    rows, failures = speed.benchmark(
        rag.model,
        rag.tokenizer,
        corpus,
        out,
        k=k,
        passage_tokens=passage_tokens,
        codecs=codecs,
        runs=speed.QUICK_RUNS if quick else speed.RUNS,
        passages=64 if quick else 256,
    )
    files = write_results(rows, failures, speed.environment(rag.model), out)
    print(table(rows), end="")
    for failure in failures:
        print(
            "note: {arm}, {k} x {passage_tokens} tokens: {error}".format(**failure), file=sys.stderr
        )
    print(f"results: {', '.join(map(str, files))}", file=sys.stderr)
