"""Writes docs/performance.md from the files of results; a part that lacks its file is left out."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imprag.evaluation.speed_arms import LIVE, NONE, RAG, stored
from imprag.evaluation.speed_report import write_plots
from imprag.evaluation.tables import markdown_table, percent
from imprag.io.optional import missing

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
COMMAND = "python benchmarks/performance.py"
STORED = stored("bf16")
PARTED = ("kv_quality", "attribution")  # files with an origin for each of their parts
LATER = "Not measured yet with the model that ships.\n"

Figures = Mapping[str, Any]


def read_results(folder: Path) -> dict[str, Figures]:
    """The files of results by their names."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def write_page(results: Path, page: Path) -> None:
    """Write the page and, where matplotlib is installed, its plots."""
    found = read_results(results)
    page.write_text(page_text(found), encoding="utf-8")
    rows = plotted_rows(found)
    if rows and not missing("matplotlib"):
        images = page.parent / "images"
        images.mkdir(exist_ok=True)
        for path in write_plots(rows, images):
            path.unlink()  # the page shows the SVG


def page_text(found: Mapping[str, Figures]) -> str:
    """The whole page."""
    sections = {
        "Answers": [arms(found), attribution(found), plots(found)],
        "What codecs cost in answers": [codecs(found), stored_equals_live(found)],
        "Search": [search(found)],
        "Encoding and training": [_wrapped(f"{encoding(found)} {training(found)}")],
        "Where the figures come from": [origins(found)],
    }
    parts = ["# Speed and memory\n", *map(_wrapped, INTRODUCTION), goals(found), startup(found)]
    for name, content in sections.items():
        shown = [part for part in content if part.strip()]
        parts += [f"## {name}\n", *(shown or [LATER])]
    return "\n".join(part for part in parts if part)


INTRODUCTION = (
    f"""
    `{COMMAND}` (or `make figures`) measures the shipped model in 100 minutes; a test fails when
    what it wrote is of another model. `imprag bench --out bench` measures any model.""",
    """
    *In-context RAG* is the baseline: all-MiniLM-L6-v2 retrieves, and the passages are put into the
    prompt of the same language model, in the same dtype, with Hugging Face `generate`. All arms
    answer the same prompts in turn, in one process; figures are medians. *By arithmetic* is the
    bound that the machine's measured matrix-product rate and memory bandwidth set: a pass takes as
    long as its products, or as reading every weight and every key and value once. A ratio can be
    better than that where the other side is farther from its own bound. For commands the bound is a
    bare `import torch, transformers`.""",
)


def _wrapped(paragraph: str) -> str:
    return textwrap.fill(" ".join(paragraph.split()), 120, break_on_hyphens=False) + "\n"


# --- Goals --------------------------------------------------------------------------------------


def goals(found: Mapping[str, Figures]) -> str:
    """Each goal with what was measured and with the bound by arithmetic."""
    rows: list[list[str]] = []
    ten, twenty = found.get("speed_10x128"), found.get("speed_20x256")
    if ten:
        first, low = by_arm(ten, "first_token"), floors(ten, 10, 128)
        rate = by_arm(ten, "tokens_per_second")
        rows += _row("first token, stored, 10 × 128 tokens, of no retrieval's", "≤ 1.2",
                     _ratio(first, STORED, NONE), low["stored"] / low["none"])  # fmt: skip
        rows += _row("first token, live, 10 × 128 tokens, of in-context RAG's", "≤ .55",
                     _ratio(first, LIVE, RAG), low["live"] / low["rag"])  # fmt: skip
        rows += _row("tokens/s, stored, 10 × 128 tokens, times in-context RAG's", "≥ 1.5",
                     _ratio(rate, STORED, RAG), low["rag_token"] / low["stored_token"])  # fmt: skip
    if twenty:
        first, low = by_arm(twenty, "first_token"), floors(twenty, 20, 256)
        rows += _row("first token, stored, 20 × 256 tokens, times sooner than in-context RAG's",
                     "≥ 33", _ratio(first, RAG, STORED), low["rag"] / low["stored"])  # fmt: skip
    if start := found.get("startup"):
        took = start["seconds"]
        bare = took["imports"]
        rows += _row("`imprag ask`, warm cache, s", "≤ 4.5", took.get("ask"), bare)
        rows += _row("first answer after installation, s", "≤ 15", took.get("first_answer"), bare)
        rows += _row("`imprag --help`, s", "≤ .3", took.get("help"), None)
    if training := found.get("training"):
        rows += _row("training step, of the matrix-product rate", "≥ .55", training["ratio"], 1.0)
    if not rows:
        return ""
    return markdown_table(["what", "goal", "measured", "by arithmetic"], rows, texts=1)


def _row(what: str, goal: str, value: float | None, bound: float | None) -> list[list[str]]:
    if value is None:
        return []
    shown = [f"{one:.3g}" if one is not None else "" for one in (value, bound)]
    return [[what, goal, *shown]]


def _ratio(values: Mapping[str, float], arm: str, base: str) -> float | None:
    return values[arm] / values[base] if arm in values and base in values else None


def by_arm(speed: Figures, what: str) -> dict[str, float]:
    """One figure of every arm."""
    return {row["arm"]: row[what] for row in speed["rows"]}


def floors(speed: Figures, k: int, length: int) -> dict[str, float]:
    """Least seconds to the first token, and of each further one, by arithmetic.

    Args:
        speed: a speed part's results.
        k: passages.
        length: tokens of each.

    Returns:
        ``none``, ``rag``, ``stored`` and ``live`` for the first token, and ``rag_token`` and
        ``stored_token`` for one of those after it.
    """
    size, machine = speed["sizes"], speed["machine"]
    rate = 1e9 * machine[f"gflops_{speed['environment']['dtype']}"]
    bandwidth = 1e9 * machine["memory_gb_per_second"]
    layers, prompt = size["layers"], size["prompt_tokens"]
    weight_bytes = size["bytes_of_parameter"] * (
        layers * size["layer_parameters"] + size["head_parameters"]
    )
    kv_bytes, read = size["kv_bytes_of_layer"], size["t"] - size["b"] + 1

    def compute(tokens: float, layers: int, keys: float) -> float:
        """Seconds of the products of layers: linear parts, and attention to so many keys."""
        linear = 2 * size["layer_parameters"] * tokens
        return layers * (linear + 4 * size["hidden_size"] * tokens * keys) / rate

    def answer(tokens: float, kept: float) -> float:
        """Seconds of a pass through all layers and the head, with ``kept`` bytes of KV."""
        head = 2 * size["head_parameters"] / rate
        return max(compute(tokens, layers, tokens / 2) + head, (weight_bytes + kept) / bandwidth)

    passages = k * length
    kept = passages * kv_bytes * read
    encoding = compute(passages, size["t"], length / 2)
    own = prompt * kv_bytes * layers
    return {
        "none": answer(prompt, 0),
        "rag": answer(prompt + passages, 0),
        "stored": answer(prompt, kept),
        "live": answer(prompt, kept) + encoding,
        "rag_token": (weight_bytes + own + passages * kv_bytes * layers) / bandwidth,
        "stored_token": (weight_bytes + own + kept) / bandwidth,
    }


# --- Sections -----------------------------------------------------------------------------------


def arms(found: Mapping[str, Figures]) -> str:
    """All arms that read ten passages of 128 tokens, and the main ones of twenty of 256."""
    shown = [found[name] for name in ("speed_10x128", "speed_20x256") if name in found]
    if not shown:
        return ""
    rows = []
    for row in (row for speed in shown for row in speed["rows"]):
        stored_bytes = row["memory_bytes"]
        rows.append(
            [
                f"{row['k']} × {row['passage_tokens']}",
                row["arm"],
                f"{row['first_token']:.3f}",
                f"{row['tokens_per_second']:.1f}",
                f"{row['memory'] / 1e6:.0f}",
                f"{row['kv_bytes'] / 1e6:.2f}",
                "" if stored_bytes is None else f"{stored_bytes / 1e3:,.0f}",
            ]
        )
    header = ["passages", "arm", "first token, s", "tokens/s after it", "peak memory, MB",
              "KV held, MB", "stored a passage, KB"]  # fmt: skip
    dtype = shown[0]["environment"]["dtype"]
    text = f"{shown[0]['rows'][0]['runs']} rounds, {dtype}.\n\n"
    return text + markdown_table(header, rows, texts=2)


def plotted_rows(found: Mapping[str, Figures]) -> list[dict[str, Any]]:
    """The rows of the plots: the arms that were measured with every number of passages."""
    if not {"speed_lengths", "speed_10x128"} <= found.keys():
        return []
    rows = [row for name in ("speed_lengths", "speed_10x128") for row in found[name]["rows"]]
    common = {row["arm"] for row in found["speed_lengths"]["rows"]}
    return [row for row in rows if row["arm"] in common]


def plots(found: Mapping[str, Figures]) -> str:
    """The two plots."""
    if not plotted_rows(found):
        return ""
    return (
        "The seconds to the first token grow with the passages' tokens:\n\n"
        "![Seconds to the first token](images/first-token.svg)\n\n"
        "![Tokens per second after it](images/tokens-per-second.svg)\n"
    )


def codecs(found: Mapping[str, Figures]) -> str:
    """Differences in exact match by codec, with a column for each task."""
    if (tasks := found.get("kv_quality")) is None:
        return ""
    first, *_ = tasks.values()
    rows = []
    for number, arm in enumerate(first["arms"]):
        of_tasks = [task["arms"][number] for task in tasks.values()]
        cells = [_cost(one["exact_match"], is_first=number == 0) for one in of_tasks]
        same = [f"{100 * one['same_answer']:.0f} %" for one in of_tasks]
        rows.append([arm["arm"], f"{arm['bytes']:g}", *cells, " / ".join(same)])
    sizes = ", ".join(f"{task['n']} questions of `{name}`" for name, task in tasks.items())
    text = f"""
        {sizes}, {first["dtype"]}: the same passages, read from KV that each codec has coded and
        decoded. Exact match of the first codec, then paired differences from it."""
    header = ["codec", "bytes of a head vector", *tasks, "same answer"]
    return _wrapped(text) + "\n" + markdown_table(header, rows, texts=1)


def _cost(match: Figures, *, is_first: bool) -> str:
    """Exact match of the first codec, the difference from it of another, with the interval."""
    value, bounds = ("mean", "interval") if is_first else ("difference", "difference_interval")
    low, high = (percent(bound, sign=not is_first) for bound in match[bounds])
    return f"{percent(match[value], sign=not is_first)} [{low}, {high}]"


def stored_equals_live(found: Mapping[str, Figures]) -> str:
    """How many answers from stored KV are those from passages encoded at once."""
    if (part := found.get("stored_equals_live")) is None:
        return ""
    same = part["prompts"] - len(part["different"])
    return _wrapped(
        f"""{same:,} of {part["prompts"]:,} greedy answers in float32 from stored KV are token for
        token those of passages encoded at once (`benchmarks/stored_equals_live.py`)."""
    )


def attribution(found: Mapping[str, Figures]) -> str:
    """Times without and with attribution."""
    if (times := found.get("attribution", {}).get("times")) is None:
        return ""
    first, rate = times["first_token"], times["tokens_per_second"]
    return _wrapped(
        f"""{times["k"]} passages a prompt, float32 states in RAM, without and with
        `attribution=True` (`benchmarks/attribution.py`): first token {first[0]:.4f} and
        {first[1]:.4f} s, {rate[0]:.1f} and {rate[1]:.1f} tokens/s; medians of
        {times["rounds"]} rounds in turn."""
    )


def search(found: Mapping[str, Figures]) -> str:
    """Kinds of indexes by size."""
    if "search" not in found:
        return ""
    rows = []
    for index in found["search"]["indexes"]:
        for kind in index["kinds"]:
            rows.append(
                [
                    f"{index['passages']:,}",
                    f"`{kind['kind']}`",
                    f"{kind['build_seconds']:.3g} s",
                    f"{1000 * kind['open_seconds']:.1f} ms",
                    f"{kind['ms_per_query']:.2f} ms",
                    f"{kind['ms_per_query_in_64']:.2f} ms",
                    f"{kind['recall_at_10']:.3f}",
                ]
            )
    text = "Clustered vectors of 192 dimensions in float16 (`benchmarks/index_build.py`):\n\n"
    header = ["vectors", "kind", "building", "opening", "one query", "one of 64", "recall@10"]
    return text + markdown_table(header, rows, texts=2)


def encoding(found: Mapping[str, Figures]) -> str:
    """Tokens in a second and the share of the matrix-product rate."""
    if (part := found.get("encode")) is None:
        return ""
    tokens = part["tokens"] / part["passages"]
    return f"""Encoding for an index (`benchmarks/encode.py`): layers 0..b over {part["passages"]:,}
        passages of {tokens:.0f} tokens on average, {_dtype(part)}: {part["tokens_per_second"]:,.0f}
        tokens/s, {part["ratio"]:.2f} of the matrix-product rate of {part["matmul_gflops"]:.0f}
        GFLOP/s."""


def training(found: Mapping[str, Figures]) -> str:
    """The training step's share of the matrix-product rate."""
    if (part := found.get("training")) is None:
        return ""
    return f"""Steps of `configs/smollm2-factbook.yaml` (`benchmarks/train_step.py`),
        {_dtype(part)}: {part["seconds_per_step"]:.1f} s, {part["tokens_per_second"]:,.0f} tokens/s,
        {part["ratio"]:.2f} of the matrix-product rate."""


def _dtype(part: Figures) -> str:
    return str(part["dtype"]).removeprefix("torch.")


def startup(found: Mapping[str, Figures]) -> str:
    """Commands from start to end."""
    if (part := found.get("startup")) is None:
        return ""
    names = {
        "imports": "a bare `import torch, transformers`",
        "help": "`imprag --help`",
        "search": "`imprag search`",
        "ask": "`imprag ask`",
        "first_answer": "the first `imprag ask` with an empty cache",
    }
    took = part["seconds"]
    listed = ", ".join(f"{text} {took[name]:.2f} s" for name, text in names.items() if name in took)
    return _wrapped(
        f"""From start to end, medians of {part["rounds"]} runs and {part["first"]} with an empty
        cache (`benchmarks/startup.py`): {listed}."""
    )


def origins(found: Mapping[str, Figures]) -> str:
    """Commit, model, date and machine of every file; those of one origin together."""
    places: dict[tuple[str, ...], list[tuple[str, Figures]]] = {}
    for name, part in entries(found):
        machine = part["machine"]
        cores = f"{machine['cores']} × {machine['cpu']}, {' '.join(machine['instructions'])}"
        model = part.get("model_fingerprint") or f"{part['sizes_fingerprint']} (sizes)"
        key = part["commit"], model, part["date"], cores
        places.setdefault(key, []).append((name, machine))
    if not places:
        return f"No part was measured yet; run: `{COMMAND}`\n"
    rows = []
    for key, parts in places.items():
        rates = [
            _range([machine[f"gflops_{dtype}"] for _, machine in parts])
            for dtype in ("float32", "bfloat16")
        ]
        memory = _range([machine["memory_gb_per_second"] for _, machine in parts])
        rows.append([", ".join(name for name, _ in parts), *key, " / ".join(rates), memory])
    header = ["files", "commit", "model", "date", "machine", "GFLOP/s float32 / bfloat16", "GB/s"]
    return markdown_table(header, rows, texts=5)


def _range(values: Sequence[float]) -> str:
    low, high = (f"{value:.0f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def entries(found: Mapping[str, Figures]) -> list[tuple[str, Figures]]:
    """Everything that has an origin of its own: the files, and the parts of those in PARTED."""
    named = []
    for name, part in found.items():
        if name in PARTED:
            named += [(f"`{name}.json`, {task}", one) for task, one in part.items()]
        else:
            named.append((f"`{name}.json`", part))
    return named


def stale(found: Mapping[str, Figures], model: str, sizes: str) -> list[str]:
    """What was measured with another model than the one with these fingerprints."""
    return [
        name
        for name, one in entries(found)
        if one.get("model_fingerprint") != model and one.get("sizes_fingerprint") != sizes
    ]
