"""``imprag compare``."""

import sys
from pathlib import Path

from imprag.cli.console import print_json
from imprag.cli.options import Json


def compare(*runs: Path, html: Path | None = None, json: Json = False) -> None:
    """Compare runs of `imprag eval` with the first of them, example by example.

    Values are percentages with 95 % bootstrap intervals; p is the p-value of a two-sided paired
    bootstrap test. Only examples that all runs have in common are compared. The table is Markdown.

    For example:

    - `imprag compare runs/bm25 runs/minilm runs/my-model > table.md`
    - `imprag compare runs/bm25 runs/my-model --html table.html`
    - `imprag compare runs/my-model splade.trec`

    Args:
        runs: Run folders, two at least. All but the first may be TREC run files of other systems,
            whose queries are named `TASK:ID` or `ID`: retrieval is scored with the first run's gold
            passages, by as many ranks as the first run has.
        html: A file for a page with the table and plots; none is written if not given.
        json: Print one JSON object, with all metrics, instead of the table, which has exact match
            or accuracy, recall@1 and @10 and, of tasks without answers, nDCG@10.
    """
    from imprag.evaluation.compare import compare as compare_runs
    from imprag.evaluation.report import require_packages
    from imprag.evaluation.tables import LABELS

    if html is not None:
        require_packages()
    comparison = compare_runs(runs, list(LABELS) if json else None)
    if json:
        print_json(comparison.to_json())
    else:
        print(comparison.to_markdown(), end="")
    if html is not None:
        comparison.write_html(html)
        print(f"wrote {html}", file=sys.stderr)
