"""The factbook benchmark, for tests that need the whole of it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from imprag.benchmarks.factbook import build_factbook
from imprag.corpus import load_corpus
from imprag.tasks import Example, read_examples

Examples = dict[tuple[str, str], list[Example]]


class Built:
    """A benchmark built once for all tests, and a second one, by another process."""

    def __init__(self, folder: Path) -> None:
        # Sets and dictionaries of strings may come in another order in the other process.
        command = f"import imprag.benchmarks.factbook as f; f.build_factbook({str(folder / 'b')!r})"
        environment = {**os.environ, "PYTHONHASHSEED": "7"}
        self.corpus = load_corpus("default")
        with subprocess.Popen([sys.executable, "-c", command], env=environment) as other:
            self.manifest: dict[str, Any] = build_factbook(folder / "a", seed=0)
        assert other.returncode == 0
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
