"""Benchmarks: folders of examples with a manifest, and the builders that make them by name.

Training and evaluation know only a benchmark's folder. Its manifest ``benchmark.json`` holds
``name``, ``version`` and ``seed``; under ``tasks``, the file and checksum of every task and split;
and, if passages are held out, under ``splits`` the subjects of each split: a list of names for
every kind of subject and every split (see `split_of_passages`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imprag.corpus import Passage
from imprag.errors import ImpRAGError
from imprag.io.files import expand_home, read_json, sha256
from imprag.io.registry import Registry

#: The manifest's file name; a folder with this file is a benchmark.
MANIFEST = "benchmark.json"


@dataclass(frozen=True)
class Benchmark:
    """A benchmark that ``imprag tasks build`` makes.

    Attributes:
        version: the version of its examples; folders of another version are refused.
        build: a function that makes a new folder from a seed and returns its manifest.
    """

    version: int
    build: Callable[[Path, int], dict[str, Any]]


#: Benchmarks by name. Packages offer them under the entry-point group ``imprag.benchmarks``.
BENCHMARKS: Registry[Benchmark] = Registry("benchmark", "imprag.benchmarks", {})


def is_benchmark(folder: str | Path) -> bool:
    """Whether the folder has a benchmark's manifest."""
    return (expand_home(folder) / MANIFEST).is_file()


def load_benchmark(folder: str | Path) -> dict[str, Any]:
    """The manifest of a built benchmark, after a check that all its files are unchanged.

    Raises:
        ImpRAGError: the folder is not a benchmark or has another version, or a file is missing or
            was changed.
    """
    folder = expand_home(folder)
    if not is_benchmark(folder):
        raise ImpRAGError(f"{folder} is not a benchmark: it has no {MANIFEST}")
    manifest: dict[str, Any] = read_json(folder / MANIFEST)
    try:
        files = [
            (folder / split["file"], split["sha256"])
            for task in manifest["tasks"].values()
            for split in task["splits"].values()
        ]
        manifest["seed"], _split_of_subjects(manifest)
        name, version = manifest["name"], manifest["version"]
    except (KeyError, TypeError, AttributeError) as error:
        raise ImpRAGError(f"{folder / MANIFEST} is damaged; build the benchmark again") from error
    again = f'delete it and run "imprag tasks build {name} --out {folder}"'
    known = BENCHMARKS.find(name).version if name in BENCHMARKS.names() else version
    if version != known:
        raise ImpRAGError(f"{folder} holds version {version}, not {known}: {again}")
    for file, expected in files:
        if not file.is_file() or sha256(file) != expected:
            raise ImpRAGError(f"{file} is missing or was changed: {again}")
    return manifest


def split_of_passages(manifest: Mapping[str, Any]) -> Callable[[Passage], str | None]:
    """A function that returns the split of a passage's subject, or None for an unknown subject.

    Args:
        manifest: the benchmark's manifest.
    """
    split_of = _split_of_subjects(manifest)
    return lambda passage: split_of.get(passage.subject)


def _split_of_subjects(manifest: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: split
        for splits in manifest.get("splits", {}).values()
        for split, names in splits.items()
        for name in names
    }
