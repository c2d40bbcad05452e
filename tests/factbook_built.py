"""The factbook benchmark, for tests that need the whole of it."""

import os
import pickle
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from imprag.benchmarks.factbook import build_factbook
from imprag.corpus import load_corpus
from imprag.io.locking import make_once
from imprag.tasks import Example, read_examples

Examples = dict[tuple[str, str], list[Example]]
RETURNED = "returned.pickle"


def _build(folder: Path) -> None:
    """Build two benchmarks and keep what the first build returns; the folder comes last."""
    made = Path(tempfile.mkdtemp(dir=folder.parent))
    # Sets and dictionaries of strings may come in another order in the other process.
    command = f"import imprag.benchmarks.factbook as f; f.build_factbook({str(made / 'b')!r})"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    with subprocess.Popen([sys.executable, "-c", command], env=environment) as other:
        manifest = build_factbook(made / "a", seed=0)
    assert other.returncode == 0
    (made / RETURNED).write_bytes(pickle.dumps(manifest))
    made.rename(folder)


class Built:
    """A benchmark built once for all tests, and a second one, by another process.

    Args:
        folder: for both; another worker that has built there, or builds, does not build again.
    """

    def __init__(self, folder: Path) -> None:
        self.corpus = load_corpus("default")
        make_once(folder, partial(_build, folder))
        self.manifest: dict[str, Any] = pickle.loads((folder / RETURNED).read_bytes())
        self.folder, self.other = folder / "a", folder / "b"
        self.examples: Examples = {
            (task, split): list(read_examples(self.folder / entry["file"]))
            for task, group in self.manifest["tasks"].items()
            for split, entry in group["splits"].items()
        }

    def train(self) -> list[tuple[str, Example]]:
        return [
            (task, example)
            for (task, split), examples in self.examples.items()
            for example in examples
            if split == "train"
        ]
