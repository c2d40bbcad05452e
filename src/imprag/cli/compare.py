"""``imprag compare``."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from imprag.cli.console import print_json


def compare(
    *runs: Path,
    metrics: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    markdown: Path | None = None,
    html: Path | None = None,
    json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Compare runs of `imprag eval`, example by example, with the first of them.

    Values are percentages with 95 % bootstrap intervals; p is that of a two-sided paired bootstrap
    test. Only examples that all runs have are compared.

    Examples:

    - `imprag compare runs/bm25 runs/teacher runs/my-model`
    - `imprag compare runs/bm25 runs/my-model --metrics all --markdown table.md --html table.html`

    Args:
        runs: Run folders, two at least.
        metrics: Metrics to compare, by their names in `results.json`, or `all`; if not given, exact
            match or accuracy, and recall@1 and @10.
        markdown: A file for the table as Markdown.
        html: A file for a page with the table and plots.
        json: Print one JSON object instead of the table.
    """
    from imprag.evaluation.compare import compare as compare_runs
    from imprag.evaluation.report import require_packages
    from imprag.evaluation.tables import HEADLINE, LABELS
    from imprag.io.files import atomic_path

    if html is not None:
        require_packages()
    names = LABELS if metrics == ["all"] else metrics or HEADLINE
    comparison = compare_runs(runs, list(names))
    if json:
        print_json(comparison.to_json())
    else:
        print(comparison.to_markdown(), end="")
    if markdown is not None:
        with atomic_path(markdown) as temporary:
            temporary.write_text(comparison.to_markdown(), encoding="utf-8")
        print(f"wrote {markdown}", file=sys.stderr)
    if html is not None:
        comparison.write_html(html)
        print(f"wrote {html}", file=sys.stderr)
