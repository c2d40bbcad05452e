"""``imprag train``."""

import sys
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from imprag.cli.console import print_json
from imprag.cli.options import Flag, Json, refuse_without_effect
from imprag.errors import ImpRAGError

if TYPE_CHECKING:
    from imprag.training.cost import CostEstimate


def train(
    *,
    config: Path,
    out: Path | None = None,
    overrides: Annotated[
        list[str] | None, Parameter(name="--set", consume_multiple=True, negative="")
    ] = None,
    resume: Flag = False,
    dry_run: Flag = False,
    devices: int | None = None,
    flops: float | None = None,
    json: Json = False,
) -> None:
    """Train a model by a recipe, into a run folder.

    For several GPUs, start the command through `torchrun` or `accelerate launch`.

    For example:

    - `imprag train --config configs/smollm2-factbook.yaml --out runs/factbook`
    - `imprag train --config configs/smollm2-factbook.yaml --out runs/factbook --resume`
    - `imprag train --config configs/qwen3-0.6b.yaml --set model.k=5 train.steps=100 --out runs/q`
    - `imprag train --config configs/llama-3.2-3b.yaml --dry-run --devices 8`
    - `torchrun --nproc-per-node 8 -m imprag train --config configs/llama-3.2-3b.yaml --out r`

    Args:
        config: The recipe, a YAML file.
        out: The run folder. Only a dry run does without.
        overrides: Values that replace the recipe's, as `key=value`: `model.k=5`, `data.0.weight=2`,
            `lora=null`.
        resume: Continue a run that was interrupted from its last checkpoint.
        dry_run: Train nothing; check that the data are there, and estimate parameters, memory,
            tokens, hours and sizes.
        devices: Number of devices that the dry run assumes; 1 if not given.
        flops: Floating-point operations per second that the dry run assumes of each device. If not
            given, 4e14: an H100 at 40 % of its bfloat16 peak.
        json: Print the results, or the estimate of a dry run, as one JSON object.
    """
    from imprag.io.optional import require

    require("training", "train", "pydantic", "accelerate")
    from imprag.training.recipe_file import load_recipe

    recipe = load_recipe(config, overrides or ())
    if dry_run:
        from imprag.training.cost import DEFAULT_FLOPS, CostEstimate

        estimate = CostEstimate(
            recipe,
            devices=1 if devices is None else devices,
            flops=DEFAULT_FLOPS if flops is None else flops,
        )
        print_json(estimate.to_dict()) if json else print(_estimate_text(estimate))
        return
    refuse_without_effect("without --dry-run", devices=devices, flops=flops)
    if out is None:
        raise ImpRAGError("say with --out where the run folder should be")

    from accelerate import PartialState

    from imprag.baselines.run import train_baseline
    from imprag.evaluation.development import DevelopmentSet
    from imprag.training.run import train as train_imprag

    evaluator = None
    if recipe.evaluation:
        metric = recipe.trainer["metric_for_best_model"]
        evaluator = partial(DevelopmentSet, recipe.evaluation, metric=metric)
    with redirect_stdout(sys.stderr):  # transformers logs to stdout
        run_training = train_imprag if recipe.system == "imprag" else train_baseline
        results = run_training(recipe, out, resume=resume, evaluator=evaluator)
    processes = PartialState()
    # Else its threads may still run when the interpreter ends, which aborts the process.
    processes.destroy_process_group()
    if not processes.is_main_process:
        return
    if json:
        print_json(results)
    else:
        for name, value in results.items():
            print(f"{name}: {value}")


def _estimate_text(estimate: "CostEstimate") -> str:
    """The cost estimate as tables."""
    from imprag.evaluation.tables import markdown_table

    content = estimate.to_dict()
    model, training = content["model"], content["training"]
    missing = [source["place"] for source in content["data"] if source["state"] == "missing"]
    tables = {
        "Parameters": markdown_table(
            ["part", "parameters"],
            [
                [_PARTS[name].format(**model), f"{count:,}"]
                for name, count in content["parameters"].items()
            ],
        ),
        "Data": markdown_table(
            ["task", "from", "state", "examples", "share", "prompt", "response"],
            [
                [
                    source["task"],
                    source["place"],
                    source["state"],
                    f"{source['examples']:,}",
                    f"{source['share']:.1%}",
                    f"{source['prompt_tokens']:.0f}",
                    f"{source['response_tokens']:.0f}",
                ]
                for source in content["data"]
            ],
            texts=3,
        ),
        "Tokens of a batch": markdown_table(
            ["stage", "of steps", *_STEP_PARTS.values()],
            [
                [
                    name.replace("_", "-"),
                    f"{stage['share']:.0%}",
                    *(f"{stage[part]:,}" for part in _STEP_PARTS),
                ]
                for name, stage in content["stages"].items()
            ],
        ),
        "Memory of one device": markdown_table(
            ["what", "GB"],
            [[name, f"{size / 1e9:,.2f}"] for name, size in content["memory"].items()],
        ),
        "Training": markdown_table(
            ["what", "value"],
            [
                ["devices", f"{training['devices']}"],
                ["FLOP/s of each", f"{training['flops_per_device']:.3g}"],
                ["steps", f"{training['steps']:,}"],
                ["tokens per step", f"{training['tokens_per_step']:,}"],
                ["tokens", f"{training['tokens']:,}"],
                ["FLOPs per step", f"{training['flops_per_step']:.3g}"],
                ["FLOPs", f"{training['flops']:.3g}"],
                ["hours", f"{training['hours']:,.2f}"],
                ["device hours", f"{training['device_hours']:,.2f}"],
            ],
        ),
        "Index and stored KV, GB": markdown_table(
            ["for", *(name for name in estimate.storage(1)), "hours to embed"],
            [
                [
                    name,
                    *(_figure(sizes[kind] / 1e9) for kind in estimate.storage(1)),
                    _figure(sizes["embedding_hours"]),
                ]
                for name, sizes in content["storage"].items()
            ],
        ),
    }
    corpus = content["corpus"]
    count = f"{corpus['passages']:,} passages" if corpus["passages"] else corpus["state"]
    lines = [
        "{base}: {layers} layers, b={b}, t={t}, embeddings of {embedding_dimension}".format(
            **model
        ),
        f"corpus {corpus['place']}: {count}, {corpus['passage_tokens']:.0f} tokens each",
        f"passage KV: {content['kv_bytes_per_token']:,} bytes a token",
    ]
    if missing:
        lines.append(
            "missing, so that numbers and lengths are assumed: " + ", ".join(dict.fromkeys(missing))
        )
    parts = (f"\n{title}\n\n{table.strip()}" for title, table in tables.items())
    return "\n".join([*lines, *parts])


def _figure(value: float) -> str:
    """A number with three digits, without an exponent if it is large."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


_PARTS = {
    "total": "total",
    "bottom": "layers 0..{b}",
    "reading": "layers above {b}, up to {t}",
    "top": "layers above {t}",
    "other": "embeddings, norm, head",
    "trained": "trained",
}
_STEP_PARTS = {
    "prompts": "prompts",
    "queries": "queries only",
    "read": "passages read",
    "embedded": "embedded only",
    "scored": "scored again",
}
