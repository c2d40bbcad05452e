"""``imprag bench``."""

import json as json_module
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from imprag.errors import ImpRAGError

Numbers = Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative="")]
Flag = Annotated[bool, Parameter(negative="")]


def bench(
    *,
    out: Path,
    model: str = "default",
    k: Numbers = (1, 5, 10, 20),
    passage_tokens: Numbers = (64, 128, 256),
    codecs: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = (
        "bf16",
        "int8",
        "int4",
        "pq",
    ),
    runs: int = 30,
    quick: Flag = False,
    compiled: Flag = False,
    dtype: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Measure time and memory beside in-context RAG with the same model.

    In-context RAG retrieves with all-MiniLM-L6-v2 and puts the passages before the prompt. All arms
    answer the same prompts in turn, with 16 new tokens and passages of the same length. Let nothing
    else run meanwhile. An arm that fails is left out; what the others measured is kept.

    Examples:

    - `imprag bench --out bench --quick`
    - `imprag bench --out bench --model my-model --k 5 10 --passage-tokens 128`
    - `imprag bench --out bench --k 10 --passage-tokens 128 --codecs bf16 --compiled`

    Args:
        out: A folder for the results, the plots, and the indexes and KV caches that are measured.
        model: The model: `default`, a folder, a GGUF file or a Hugging Face id.
        k: Numbers of passages.
        passage_tokens: Lengths of passages.
        codecs: Of the stored keys and values.
        runs: Of each arm, after two for warming up.
        quick: Ten passages of 128 tokens only, bf16 and pq, 6 runs: three minutes.
        compiled: Also measure decoding by a compiled pass: in-context RAG's, and ImpRAG's with the
            first codec. Minutes of compiling more.
        dtype: `float32`, `bfloat16`, or `auto`: bfloat16 where that is faster.
        device: `cpu`, `cuda`, `cuda:1` ...
        threads: Of PyTorch; as many as it takes if not given.
        json: Print the results as one JSON object.
    """
    import torch

    from imprag.corpus import load_corpus
    from imprag.evaluation.speed import benchmark, environment, growth, ratios
    from imprag.evaluation.speed_report import table, write_plots
    from imprag.io.files import write_json
    from imprag.io.optional import missing, note_without
    from imprag.pipeline import ImpRAG
    from imprag.retrieval.dense import require_teacher

    if runs < 1 or not k or not passage_tokens or min(*k, *passage_tokens, 1) < 1:
        raise ImpRAGError("runs, numbers and lengths of passages must be at least 1")
    if threads is not None:
        torch.set_num_threads(threads)
    if quick:
        k, passage_tokens, codecs, runs = (10,), (128,), ("bf16", "pq"), 6
    require_teacher()
    note_without("plots", "eval", "matplotlib")
    corpus = load_corpus("factbook")
    rag = ImpRAG.from_pretrained(model, dtype=dtype, device=device)
    rows, failures = benchmark(
        rag.model,
        rag.tokenizer,
        corpus,
        out,
        k=k,
        passage_tokens=passage_tokens,
        codecs=codecs,
        runs=runs,
        passages=64 if quick else 256,
        compiled=compiled,
    )
    results: dict[str, Any] = {
        "ratios": ratios(rows),
        "growth": growth(rows),
        "rows": rows,
        "failures": failures,
        "environment": environment(rag.model),
    }
    write_json(out / "speed.json", results)
    text = table(rows)
    (out / "speed.md").write_text(text, encoding="utf-8")
    plots = not missing("matplotlib")
    if plots:
        write_plots(rows, out)
    print(json_module.dumps(results) if json else text, end="\n" if json else "")
    for failure in failures:
        print(
            "note: {arm}, {k} x {passage_tokens} tokens: {error}".format(**failure), file=sys.stderr
        )
    beside = " and plots beside" if plots else ""
    print(f"results: {out / 'speed.json'}, {out / 'speed.md'}{beside}", file=sys.stderr)
