"""``imprag reproduce``."""

import sys
from pathlib import Path

from imprag.cli.console import print_json
from imprag.cli.options import Flag, Json, Names, refuse_without_effect
from imprag.errors import ImpRAGError


def reproduce(
    study: str,
    /,
    *,
    out: Path | None = None,
    only: Names = None,
    wiki: Path | None = None,
    dry_run: Flag = False,
    devices: int | None = None,
    flops: float | None = None,
    json: Json = False,
) -> None:
    """Reproduce the paper's tables: baselines, ablations and ImpRAG, trained and evaluated alike.

    Rerun the same command after an interruption or a failure: finished steps are not run again. A
    step that fails does not stop those that do not need it; the tables say what is missing.

    For example:

    - `imprag reproduce small --dry-run`
    - `imprag reproduce small --only table2 --out runs/small`
    - `imprag reproduce small --wiki wiki --out runs/small`
    - `imprag reproduce paper --dry-run --devices 8`

    Args:
        study: `small` (SmolLM2-135M on the factbook benchmark, on a CPU), `paper` (Llama-3.2-3B and
            3.1-8B on the official data sets, on GPUs), or a folder of your own with `study.yaml`.
        out: The folder for all steps, `tables.md`, `tables.json` and `tables.html`. Only a dry run
            does without.
        only: Names of the tables to make, such as `table2` and `figure2`. All if not given.
        wiki: A folder with `wiki_passages.jsonl.gz` and `wiki_questions.jsonl.gz`, for the tables
            of `small` on Wikipedia; questions are in KILT's form and name their tasks.
        dry_run: Run nothing; print the steps with their hours, memory and disk, and the files that
            are missing with the command that gets each.
        devices: GPUs that train together, by torchrun; 1 if not given, and the study's in a dry
            run.
        flops: Floating-point operations per second that the dry run assumes of each device. The
            study's if not given.
        json: Print the tables, or the plan of a dry run, as one JSON object.
    """
    from imprag.io.optional import require

    require("training", "train", "pydantic", "accelerate")
    from imprag.reproduce.graph import load_graph
    from imprag.reproduce.plan import Plan, check_devices
    from imprag.reproduce.run import LOGS, status_of
    from imprag.reproduce.run import reproduce as run_steps
    from imprag.reproduce.tables import TABLES, make_tables, markdown

    check_devices(devices, flops)
    graph = load_graph(study, only=only or (), wiki=wiki)
    if dry_run:
        plan = Plan(graph, out, devices=devices, flops=flops)
        print_json(plan.to_json()) if json else print(plan)
        return
    refuse_without_effect("without --dry-run", flops=flops)
    if out is None:
        raise ImpRAGError("say with --out where the study's folder should be")
    status = run_steps(graph, out, devices=devices or 1)
    whole = load_graph(study, wiki=wiki) if only else graph  # tables of earlier calls stay
    made = make_tables(whole, out, {**status_of(whole, out), **status}, only or ())
    print_json(made) if json else print(markdown(made), end="")
    print(f"tables: {out / TABLES}.html", file=sys.stderr)
    if failed := [name for name, one in status.items() if one == "failed"]:
        raise ImpRAGError(
            f"{len(failed)} of {len(status)} steps failed, such as {failed[0]}; see {out / LOGS}, "
            "and rerun the same command"
        )
