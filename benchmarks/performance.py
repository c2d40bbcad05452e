"""Measures every figure of docs/performance.md and writes the page.

    python benchmarks/performance.py                         # 100 minutes; nothing else should run
    python benchmarks/performance.py --parts startup search  # only these, measured again
    python benchmarks/performance.py --page                  # writes the page from the files
    python benchmarks/performance.py --parts kv_quality --squad held-out.jsonl passages.jsonl

Each part is one file of the results' folder, with commit, fingerprint of the shipped model, machine
and date. Times of a fixed amount of work are the same with other weights of the same sizes, whose
fingerprint they name. Times come first, in half an hour; rerun after an interruption, those that
were measured with this model and commit are reused. The other parts answer questions of the
factbook benchmark, which is built first, and take no times but attribution's; of them `kv_quality`
goes on where it stopped. ``--squad`` adds questions with their passages to what codecs are compared
on.
"""

import argparse
import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from performance_page import PAGE, RESULTS, write_page

HERE = Path(__file__).parent
CODECS = ("bf16", "int8", "pq")
SEARCHES = ((10_000, "hnsw"), (100_000, "ivfpq"), (1_000_000, "ivfpq"))
RUNS = 30


def speed(
    work: Path, quick: bool, k: Sequence[int], tokens: int, codecs: Sequence[str], runs: int = RUNS
) -> dict[str, Any]:
    """All arms that answer, in turn; and the sizes that lower bounds are computed from."""
    from imprag.corpus import load_corpus
    from imprag.evaluation.speed import benchmark, environment
    from imprag.evaluation.speed_report import growth, ratios
    from imprag.pipeline import ImpRAG

    rag = ImpRAG.from_pretrained("default")
    rows, failures = benchmark(
        rag.model, rag.tokenizer, load_corpus("factbook"), work / "speed", k=k,
        passage_tokens=[tokens], codecs=codecs, runs=2 if quick else runs, passages=64,
    )  # fmt: skip
    return {
        "rows": rows,
        "failures": failures,
        "ratios": ratios(rows),
        "growth": growth(rows),
        "environment": environment(rag.model),
        "sizes": sizes(rag.model, rag.tokenizer),
    }


def sizes(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Parameters and bytes of a model's parts, and the tokens of a prompt."""
    from torch import nn

    from imprag.evaluation.speed_measure import PROMPTS

    layers = model.lm.base_model.layers
    linear = [m.weight.numel() for m in layers[0].modules() if isinstance(m, nn.Linear)]
    tokens = [len(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
    return {
        "layers": len(layers),
        "b": model.config.b,
        "t": model.config.t,
        "layer_parameters": sum(linear),
        "head_parameters": model.lm.get_output_embeddings().weight.numel(),
        "hidden_size": model.lm.config.hidden_size,
        "kv_bytes_of_layer": 2 * model.embedding_dim * model.lm.dtype.itemsize,
        "bytes_of_parameter": model.lm.dtype.itemsize,
        "prompt_tokens": sum(tokens) / len(tokens),
    }


def script(name: str, *arguments: str, cwd: Path | None = None) -> Any:
    """What another script of this folder prints with ``--json``."""
    command = [sys.executable, str(HERE / f"{name}.py"), *arguments, "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=cwd)
    return json.loads(done.stdout)


def search(work: Path, quick: bool) -> dict[str, Any]:
    """Kinds of indexes of synthetic clusters."""
    tasks = [(1_000, "hnsw")] if quick else SEARCHES
    found = [
        script("index_build", "--passages", str(count), "--kinds", kind) for count, kind in tasks
    ]
    return {"indexes": found}


def encode(work: Path, quick: bool) -> dict[str, Any]:
    """Encoding a corpus for an index."""
    sizes = ("--passages", "64", "--rounds", "1") if quick else ()
    return dict(script("encode", "--model", "default", *sizes))


def startup(work: Path, quick: bool) -> dict[str, Any]:
    """Commands from start to end."""
    return dict(script("startup", *(("--rounds", "1", "--first", "0") if quick else ())))


def training(work: Path, quick: bool) -> dict[str, Any]:
    """Steps of the recipe that trains on the factbook benchmark, which is built first."""
    import torch

    from imprag.model.base import resolve_device, resolve_dtype

    factbook_benchmark(work)
    config = HERE.parent / "configs" / "smollm2-factbook.yaml"
    options = ["--config", str(config), "--steps", "1" if quick else "8"]
    if resolve_dtype("auto", resolve_device("auto")) is torch.float32:
        options += ["--set", "trainer.bf16=false"]  # emulated, a step takes minutes
    return dict(script("train_step", *options, cwd=work))


def factbook_benchmark(work: Path) -> Path:
    """The factbook benchmark's folder, built if it is not there."""
    folder = work / "factbook-bench"
    if not folder.is_dir():
        build = ("tasks", "build", "factbook", "--out", str(folder))
        subprocess.run([sys.executable, "-m", "imprag", *build], check=True, stdout=sys.stderr)
    return folder


#: Scripts that write their own files: what makes them a mere try, and their minutes.
ANSWERS: dict[str, tuple[Sequence[str], float]] = {
    "attribution": (("--right", "1", "--rounds", "1"), 15),
    "kv_quality": (("--limit", "2"), 15),
    "stored_equals_live": (("--prompts", "8"), 35),
}

#: The parts by the names of their files, and the minutes that each takes on two slow cores.
PARTS: dict[str, tuple[Callable[[Path, bool], dict[str, Any]], float]] = {
    "speed_10x128": (partial(speed, k=(10,), tokens=128, codecs=CODECS), 5),
    "speed_20x256": (partial(speed, k=(20,), tokens=256, codecs=("bf16",)), 10),
    "speed_lengths": (partial(speed, k=(1, 5, 20), tokens=128, codecs=("bf16",), runs=6), 3),
    "startup": (startup, 2),
    "encode": (encode, 1),
    "search": (search, 3),
    "training": (training, 4),
}
#: Parts whose times depend on where answers end.
ANSWERING = ("startup",)


def measured(name: str, work: Path, quick: bool) -> dict[str, Any]:
    """A part's figures with their origin. Runs in a process of its own."""
    from machine import origin

    made = origin(times=name not in ANSWERING)
    start = time.perf_counter()
    figures = PARTS[name][0](work, quick)
    return {**made, "seconds": round(time.perf_counter() - start), "quick": quick, **figures}


def answers(name: str, out: Path, work: Path, squad: Sequence[str] | None, *, quick: bool) -> None:
    """Run a script of `ANSWERS`."""
    few = ANSWERS[name][0] if quick else ()
    tasks = [["--data", str(factbook_benchmark(work))]]
    if squad is not None and name == "kv_quality":
        questions, passages = squad
        tasks.append(["--task", f"squad={questions}", "--corpus", passages])
    for task in tasks:
        limit = () if "--data" in task or quick else ("--limit", "300")
        command = [sys.executable, str(HERE / f"{name}.py"), *task, *few, *limit, "--out", str(out)]
        subprocess.run(command, check=True, stdout=sys.stderr)


def run(
    names: Sequence[str],
    out: Path,
    work: Path,
    squad: Sequence[str] | None = None,
    *,
    quick: bool,
    again: bool,
) -> list[str]:
    """Measure parts, each into its file; returns those that failed."""
    from imprag.io.files import write_json
    from machine import commit, fingerprint

    failed = []
    for name in names:
        path = out / f"{name}.json"
        if not again and path.exists() and name in PARTS:
            known = json.loads(path.read_text())
            wanted = {
                **fingerprint(times=name not in ANSWERING),
                "commit": commit(),
                "quick": quick,
            }
            if {key: known.get(key) for key in wanted} == wanted:
                print(f"{name}: measured before", file=sys.stderr)
                continue
        minutes = (PARTS | ANSWERS)[name][1]
        print(f"{name}: about {minutes} minutes", file=sys.stderr)
        try:
            if name in ANSWERS:
                answers(name, out, work, squad, quick=quick)
                continue
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                write_json(path, process.submit(measured, name, work, quick).result())
        except Exception as error:
            print(f"{name} failed: {error}", file=sys.stderr)
            failed.append(name)
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the results")
    parser.add_argument(
        "--parts", nargs="+", choices=[*PARTS, *ANSWERS], help="measure these again"
    )
    parser.add_argument(
        "--squad", nargs=2, metavar=("QUESTIONS", "PASSAGES"), help="more questions for codecs"
    )
    parser.add_argument("--page", action="store_true", help="only write the page")
    parser.add_argument("--to", type=Path, default=PAGE, help="the page")
    parser.add_argument("--work", type=Path, default=Path("build/performance"))
    parser.add_argument("--quick", action="store_true", help="a try of each part, no real figures")
    given = parser.parse_args(arguments)

    failed: list[str] = []
    if not given.page:
        names = given.parts or [*PARTS, *ANSWERS]
        work, again = given.work.resolve(), given.parts is not None
        failed = run(names, given.out.resolve(), work, given.squad, quick=given.quick, again=again)
    write_page(given.out, given.to)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
