"""The run folder of an evaluation: its recipe, predictions and results.

- ``recipe.yaml``: all settings that the metrics depend on, resolved, and the environment;
- ``predictions.jsonl``: one line per example, in a fixed order, written batch by batch;
- ``results.json``, ``run.trec``, ``qrels.trec``, ``kilt/`` and ``report.html``: made from these.
"""

import json
import os
import platform
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from imprag.errors import ImpRAGError
from imprag.io.files import atomic_path, expand_home, read_json, write_json

RECIPE = "recipe.yaml"
PREDICTIONS = "predictions.jsonl"
RESULTS = "results.json"
FORMAT_VERSION = 1
#: Key of locations in a recipe; they may differ when a run is resumed, fingerprints may not.
_PLACE = "source"
_PACKAGES = ("imprag", "torch", "transformers", "faiss-cpu", "sentence-transformers", "tantivy")

Prediction = dict[str, Any]


class RunFolder:
    """The folder of a run.

    Attributes:
        path: the folder.
        recipe: content of ``recipe.yaml``: ``settings``, which identify the run, and
            ``environment``, which may differ when the run is resumed.
    """

    def __init__(self, path: Path, recipe: dict[str, Any]) -> None:
        self.path = path
        self.recipe = recipe

    @classmethod
    def open(cls, path: Path | str) -> "RunFolder":
        """Open the folder of a finished or unfinished run.

        Raises:
            ImpRAGError: the folder holds no run, or a run in another format.
        """
        path = expand_home(path)
        if not (path / RECIPE).is_file():
            raise ImpRAGError(
                f"{path} is not a run folder: it has no {RECIPE}; make one with imprag eval"
            )
        try:
            recipe = yaml.safe_load((path / RECIPE).read_text(encoding="utf-8"))
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise ImpRAGError(f"{path / RECIPE} is not valid YAML: {reason}") from error
        if not isinstance(recipe, dict) or recipe.get("format_version") != FORMAT_VERSION:
            raise ImpRAGError(
                f"{path / RECIPE} is not in run format {FORMAT_VERSION}; evaluate again"
            )
        return cls(path, recipe)

    @classmethod
    def start(
        cls, path: Path | str, settings: dict[str, Any], environment: dict[str, Any]
    ) -> "RunFolder":
        """Create a run folder, or open one with the same settings to resume it.

        Raises:
            ImpRAGError: the folder holds other files, or a run with other settings.
        """
        path = expand_home(path)
        if (path / RECIPE).exists():
            run = cls.open(path)
            # A round trip through YAML turns tuples into lists, as in the file.
            fresh = yaml.safe_load(yaml.safe_dump(settings))
            if different := list(_differences(run.recipe["settings"], fresh)):
                raise ImpRAGError(
                    f"{path} holds another run: {'; '.join(different)}; "
                    "choose another folder or delete this one"
                )
        elif path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ImpRAGError(f"{path} exists and is not a run folder; choose another folder")
        recipe = {
            "format_version": FORMAT_VERSION,
            "settings": settings,
            "environment": {**environment, **_versions()},
        }
        with atomic_path(path / RECIPE) as temporary:
            text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=100)
            temporary.write_text(text, encoding="utf-8")
        return cls(path, recipe)

    def resume(self, batches: Sequence[Sequence[Any]]) -> int:
        """Delete predictions of a batch that an interruption left unfinished.

        Args:
            batches: all batches of the run, in order.

        Returns:
            the number of finished batches.
        """
        path = self.path / PREDICTIONS
        content = path.read_bytes() if path.exists() else b""
        ends = [0, *(match.end() for match in re.finditer(b"\n", content))]
        finished = lines = 0
        for batch in batches:
            if lines + len(batch) >= len(ends):
                break
            lines += len(batch)
            finished += 1
        if ends[lines] < len(content):
            os.truncate(path, ends[lines])
        return finished

    def append(self, predictions: Iterable[Prediction]) -> None:
        """Append the predictions of a batch to ``predictions.jsonl`` in one write.

        Raises:
            ImpRAGError: the disk is full.
        """
        lines = [json.dumps(prediction, ensure_ascii=False) + "\n" for prediction in predictions]
        path = self.path / PREDICTIONS
        try:
            with open(path, "ab") as stream:
                stream.write("".join(lines).encode())
        except OSError as error:
            raise ImpRAGError(
                f"cannot write {path}: {error.strerror}; free some space, then run the same "
                "command again: it continues where it stopped"
            ) from error

    def predictions(self) -> Iterator[Prediction]:
        """All predictions, read line by line.

        Raises:
            ImpRAGError: there are no predictions yet, or a line is damaged.
        """
        path = self.path / PREDICTIONS
        if not path.is_file():
            raise ImpRAGError(f"{self.path} holds no {PREDICTIONS} yet; evaluate first")
        with open(path, "rb") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    prediction = json.loads(line)
                    prediction["task"], prediction["id"], prediction["metrics"]
                except (ValueError, KeyError, TypeError) as error:
                    raise ImpRAGError(
                        f"{path}, line {number} is damaged; delete {self.path} and evaluate again"
                    ) from error
                yield prediction

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write ``results.json``."""
        write_json(self.path / RESULTS, results)

    def results(self) -> dict[str, Any]:
        """Content of ``results.json``.

        Raises:
            ImpRAGError: the run is not finished.
        """
        if not (self.path / RESULTS).is_file():
            raise ImpRAGError(
                f"the run {self.path} is not finished; run its imprag eval command again"
            )
        results = read_json(self.path / RESULTS)
        if not isinstance(results, dict) or not isinstance(results.get("tasks"), dict):
            raise ImpRAGError(f"{self.path / RESULTS} is damaged; evaluate again")
        return results


def resumed_dtype(path: Path, dtype: str) -> str:
    """The dtype to load a run's model in; ``auto`` takes the dtype of the run's first call.

    ``auto`` measures speed, so it may choose differently on a busy machine, and a run cannot be
    resumed in another dtype.

    Args:
        path: the run folder; it need not exist.
        dtype: the dtype that the user gave.
    """
    if dtype != "auto" or not (path / RECIPE).is_file():
        return dtype
    model = RunFolder.open(path).recipe.get("settings", {}).get("model", {})
    return str(model.get("dtype", dtype))


def _differences(
    there: Mapping[str, Any], here: Mapping[str, Any], parent: str = ""
) -> Iterator[str]:
    """Sentences about settings that differ, without locations."""
    for key in dict.fromkeys([*there, *here]):
        old, new = there.get(key), here.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{parent}{key}.")
        elif old != new and key != _PLACE:
            yield f"{parent}{key} is {_short(old)} there and {_short(new)} here"


def _short(value: Any) -> str:
    if value is None:
        return "absent"
    if isinstance(value, dict):
        return "set"
    return str(value)


def _versions() -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {"versions": versions, "platform": platform.platform()}
