"""docs/performance.md: written from files of results, about the model that ships."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from imprag.evaluation.speed_arms import LIVE, NONE, RAG, stored

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
MACHINE = {
    "cpu": "A CPU",
    "cores": 2,
    "instructions": ["avx2"],
    "gflops_float32": 100.0,
    "gflops_bfloat16": 10.0,
    "memory_gb_per_second": 10.0,
}
ORIGIN = {"commit": "abc", "model_fingerprint": "f1", "machine": MACHINE, "date": "2026-01-02"}


def benchmark_module(name: str) -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def page() -> ModuleType:
    return benchmark_module("performance_page")


def speed(k: int, tokens: int, first_token: dict[str, float]) -> dict[str, Any]:
    rate = {NONE: 30.0, RAG: 20.0, LIVE: 32.0, stored("bf16"): 32.0}
    rows = [
        {
            "arm": arm,
            "k": k,
            "passage_tokens": tokens,
            "first_token": seconds,
            "tokens_per_second": rate[arm],
            "memory": 1e6,
            "kv_bytes": 2e6,
            "memory_bytes": None,
            "runs": 30,
        }
        for arm, seconds in first_token.items()
    ]
    sizes = {
        "layers": 4,
        "b": 1,
        "t": 2,
        "layer_parameters": 1_000_000,
        "head_parameters": 500_000,
        "hidden_size": 50,
        "kv_bytes_of_layer": 100,
        "bytes_of_parameter": 4,
        "prompt_tokens": 10,
    }
    return {**ORIGIN, "rows": rows, "sizes": sizes, "environment": {"dtype": "float32"}}


def test_the_page_is_what_the_files_give(page: ModuleType) -> None:
    found = page.read_results(page.RESULTS)
    text = page.PAGE.read_text(encoding="utf-8")
    assert text == page.page_text(found), f"run: {page.COMMAND} --page"
    assert len(text.splitlines()) <= 100
    for name, part in page.entries(found):
        assert part["commit"], name
        assert part["machine"]["cpu"], name
        assert not part.get("quick"), f"{name} is of a try; run: {page.COMMAND}"


def test_the_figures_are_of_the_model_that_ships(page: ModuleType) -> None:
    machine = benchmark_module("machine")
    shipped = machine.answering_fingerprint(), machine.sizes_fingerprint()
    old = page.stale(page.read_results(page.RESULTS), *shipped)
    assert old == [], f"these are of another model; measure them again with: {page.COMMAND}"


@pytest.mark.parametrize(
    ("changes", "of_answers", "of_times"),
    [
        ({"confidence": {"bias": 1.0}}, False, False),
        ({"gate": None}, True, False),
        ({"t": 19}, True, True),
        ("values", True, False),
        ("types", True, True),
        ("ranks", True, True),
    ],
    ids=["confidence", "gate", "t", "values", "types", "ranks"],
)
def test_what_answers_and_times_depend_on(
    changes: Any, of_answers: bool, of_times: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = benchmark_module("machine")
    before = machine.answering_fingerprint(), machine.sizes_fingerprint()
    for name in (machine.SETTINGS, machine.WEIGHTS):
        (tmp_path / name).write_bytes((machine.DEFAULT_FOLDER / name).read_bytes())
    settings = json.loads((machine.DEFAULT_FOLDER / machine.CONFIG_NAME).read_text())
    monkeypatch.setattr(machine, "DEFAULT_FOLDER", tmp_path)
    if isinstance(changes, str):
        weights = load_file(tmp_path / machine.WEIGHTS)
        name = min(name for name in weights if name.endswith("lora_A.weight"))
        weights[name] = {
            "values": weights[name].roll(1, 0),
            "types": weights[name].to(torch.bfloat16),
            "ranks": weights[name][:-1].clone(),
        }[changes]
        save_file(weights, tmp_path / machine.WEIGHTS)
    else:
        settings |= changes
    (tmp_path / machine.CONFIG_NAME).write_text(json.dumps(settings, indent=2))
    after = machine.answering_fingerprint(), machine.sizes_fingerprint()
    assert [one != other for one, other in zip(before, after, strict=True)] == [
        of_answers,
        of_times,
    ]


def test_figures_of_another_model_are_noticed(page: ModuleType) -> None:
    sizes = {name: value for name, value in ORIGIN.items() if name != "model_fingerprint"}
    found = {
        "now": ORIGIN,
        "before": {**ORIGIN, "model_fingerprint": "f0"},
        "never": {},
        "times": {**sizes, "sizes_fingerprint": "s1"},
        "times_before": {**sizes, "sizes_fingerprint": "s0"},
    }
    assert page.stale(found, "f1", "s1") == ["`before.json`", "`never.json`", "`times_before.json`"]
    assert page.stale({"kv_quality": {"a": ORIGIN, "b": {}}}, "f1", "s1") == [
        "`kv_quality.json`, b"
    ]


def test_goals_stand_beside_figures_and_bounds(page: ModuleType) -> None:
    first = {NONE: 0.1, RAG: 2.0, LIVE: 1.2, stored("bf16"): 0.125}
    found = {
        "speed_10x128": speed(10, 128, first),
        "startup": {**ORIGIN, "seconds": {"imports": 2.0, "ask": 4.0, "help": 0.25}},
    }
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in page.goals(found).splitlines()[2:]
    ]
    assert [row[1:3] for row in rows] == [
        ["≤ 1.2", "1.25"],
        ["≤ .55", "0.6"],
        ["≥ 1.5", "1.6"],
        ["≤ 4.5", "4"],
        ["≤ .3", "0.25"],
    ]
    assert page.goals({}) == ""


def test_bounds_are_products_or_bytes_whichever_takes_longer(page: ModuleType) -> None:
    low = page.floors(speed(10, 128, {}), 10, 128)
    weights = 4 * (4 * 1_000_000 + 500_000)
    kept = 1280 * 100 * 2  # layers b..t
    assert low["none"] == pytest.approx(weights / 10e9)
    assert low["stored"] == pytest.approx((weights + kept) / 10e9)
    assert low["stored_token"] == pytest.approx((weights + 10 * 100 * 4 + kept) / 10e9)
    assert low["rag_token"] == pytest.approx((weights + 1290 * 100 * 4) / 10e9)
    attention = 4 * 50 * 1290 * 1290 / 2
    products = 4 * (2 * 1_000_000 * 1290 + attention) + 2 * 500_000
    assert low["rag"] == pytest.approx(products / 100e9)
    encoding = 2 * (2 * 1_000_000 * 1280 + 4 * 50 * 1280 * 64)
    assert low["live"] == pytest.approx(low["stored"] + encoding / 100e9)


def test_codecs_stand_beside_their_cost_in_each_task(page: ModuleType) -> None:
    def arm(name: str, mean: float, difference: float) -> dict[str, Any]:
        match = {
            "mean": mean,
            "interval": [mean - 0.1, mean + 0.1],
            "difference": difference,
            "difference_interval": [difference - 0.02, difference + 0.02],
        }
        return {"arm": name, "bytes": 34.0, "same_answer": 0.9, "exact_match": match}

    task = {**ORIGIN, "n": 500, "dtype": "float32"}
    arms = [arm("fp32", 0.5, 0.0), arm("pq", 0.49, -0.01)]
    text = page.codecs(
        {"kv_quality": {"qa": {**task, "arms": arms}, "squad": {**task, "arms": arms}}}
    )
    assert text.startswith("500 questions of `qa`, 500 questions of `squad`, float32: ")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[-2:]]
    assert rows == [
        ["fp32", "34", *["50.0 [40.0, 60.0]"] * 2, "90 % / 90 %"],
        ["pq", "34", *["-1.0 [-3.0, +1.0]"] * 2, "90 % / 90 %"],
    ]


def test_answers_that_differ_and_the_cost_of_attribution_are_said(page: ModuleType) -> None:
    text = page.page_text(
        {
            "stored_equals_live": {**ORIGIN, "prompts": 1000, "different": [{"prompt": "a"}]},
            "attribution": {
                "times": {
                    **ORIGIN,
                    "k": 10,
                    "rounds": 30,
                    "first_token": [0.08, 0.081],
                    "tokens_per_second": [30.0, 29.5],
                }
            },
        }
    )
    assert "999 of 1,000 greedy answers" in text
    assert "first token 0.0800 and 0.0810 s" in " ".join(text.split())
    assert "`attribution.json`, times" in text


def test_a_part_without_its_file_is_left_out(page: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "encode.json").write_text(
        json.dumps(
            {
                **ORIGIN,
                "dtype": "torch.float32",
                "passages": 2,
                "tokens": 300,
                "tokens_per_second": 5000.0,
                "ratio": 0.6,
                "matmul_gflops": 99.6,
            }
        )
    )
    page.write_page(tmp_path, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "5,000 tokens/s, 0.60 of the matrix-product rate of 100 GFLOP/s" in text.replace(
        "\n", " "
    )
    assert "first token" not in text
    assert text.count(page.LATER) == 3
    assert "| `encode.json` | abc " in text
