"""Fits the confidence in answers on dev prompts, and says what it tells about prompts left out.

    python examples/default_model/fit_confidence.py --data factbook-bench --tasks factbook/qa \\
        --limit 200 --runs confidence-runs --out confidence.json

The prompts are answered as they are, and half as many of them a second time without their gold
passages, as unanswerable prompts. Both runs are folders of ``imprag eval`` under ``--runs``: after
an interruption, the same command continues. ``--also`` adds the runs of former calls, for prompts
over another index. ``--out`` gets the weights, to be copied into ``imprag.json`` as "confidence".
Fit them again when the weights, the gate or the attention bias of the model have changed.
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imprag import ImpRAG, evaluate
from imprag.evaluation.calibration import summarize_confidence
from imprag.evaluation.passage_sources import own_retrieval, without_gold
from imprag.evaluation.run_folder import RunFolder
from imprag.evaluation.scoring import is_right
from imprag.tasks import read_tasks
from imprag.training.confidence import fit_confidence

Answered = tuple[dict[str, float], bool]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="default")
    parser.add_argument("--index", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tasks", nargs="+", required=True)
    parser.add_argument("--split", help="of --data; dev if not given")
    parser.add_argument("--limit", type=int, default=200, help="prompts of each task")
    parser.add_argument("--runs", type=Path, required=True, help="the folder of both runs")
    parser.add_argument(
        "--also", type=Path, nargs="+", default=[], help="the --runs of former calls"
    )
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    split = options.split or (None if options.data is None else "dev")
    tasks = read_tasks(options.tasks, data=options.data, split=split)
    # Any confidence lets answers have evidence.
    rag = ImpRAG.from_pretrained(
        options.model, options.index, dtype="float32", confidence={"bias": 0.0}
    )
    retrieval = own_retrieval(rag)
    evaluate(rag, tasks, options.runs / "answerable", source=retrieval, limit=options.limit)
    evaluate(
        rag,
        tasks,
        options.runs / "unanswerable",
        source=without_gold(retrieval),
        limit=max(options.limit // 2, 1),
    )
    kinds = {
        name: [one for runs in (options.runs, *options.also) for one in answered(runs / name)]
        for name in ("answerable", "unanswerable")
    }
    report(kinds)
    everything = [one for pairs in kinds.values() for one in pairs]
    weights = fit_confidence(*zip(*everything, strict=True)).weights
    options.out.write_text(json.dumps(weights, indent=2) + "\n")


def answered(run: Path) -> list[Answered]:
    """Evidence of each answer of a run, and whether it is right."""
    pairs = []
    for prediction in RunFolder.open(run).predictions():
        right = is_right(prediction["metrics"])
        if right is not None:
            pairs.append((prediction["evidence"], right))
    return pairs


def report(kinds: dict[str, list[Answered]]) -> None:
    """Measures each half of the prompts by the confidence that was fitted on the other one."""
    halves: list[dict[str, list[Answered]]] = [{}, {}]
    for name, pairs in kinds.items():
        mixed = random.Random(0).sample(pairs, len(pairs))
        halves[0][name], halves[1][name] = mixed[::2], mixed[1::2]
    found: dict[str, list[tuple[float, bool]]] = {name: [] for name in kinds}
    for fitted_on, half in (halves, halves[::-1]):
        confidence = fit_confidence(*zip(*_all(fitted_on), strict=True))
        for name, pairs in half.items():
            found[name] += [(confidence.of(evidence), right) for evidence, right in pairs]
    for name, judged in found.items():
        print(f"{name}: {json.dumps(_rounded(summarize_confidence(*zip(*judged, strict=True))))}")


def _all(kinds: dict[str, list[Answered]]) -> Sequence[Answered]:
    return [one for pairs in kinds.values() for one in pairs]


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return round(value, 3) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
