"""``imprag export``."""

import sys
from pathlib import Path


def export(run: Path, /, *, out: Path) -> None:
    """Make a small folder of a trained adapter and its embeddings of the built-in corpus.

    The folder can be shipped in a package, and is a model for `--model`. The adapter's factors are
    stored in 8-bit floats, embeddings in 8-bit integers. The recipe and the training time are in
    it, too.

    For example:

    - `imprag export runs/default --out src/imprag/default`

    Args:
        run: The run folder, made by `imprag train` with a recipe that has `lora`.
        out: The folder to make.
    """
    from imprag.training.export import export as run_export

    run_export(run, out)
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {size / 1e6:.1f} MB", file=sys.stderr)
