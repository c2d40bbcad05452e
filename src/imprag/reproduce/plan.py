"""What the steps of a study will take: hours, memory and disk, without running anything."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imprag.errors import ImpRAGError
from imprag.evaluation.tables import markdown_table
from imprag.io.building import readable_size
from imprag.reproduce.graph import Graph, Step
from imprag.reproduce.run import status_of
from imprag.training.cost import WIKIPEDIA_PASSAGES, CostEstimate
from imprag.training.data_cost import CorpusCost, SourceCost, estimate_data
from imprag.training.recipe import Recipe

_NEW_TOKENS = 20  # of an answer


@dataclass(frozen=True)
class StepPlan:
    """What a step takes.

    Attributes:
        step: the step.
        done: whether it is finished.
        hours: time, on all devices together.
        memory: bytes on each device; 0 where it is less than a training's.
        disk: bytes that it leaves.
        checkpoints: bytes that it takes meanwhile.
    """

    step: Step
    done: bool
    hours: float = 0.0
    memory: float = 0.0
    disk: float = 0.0
    checkpoints: float = 0.0


class Plan:
    """The plan of a study.

    Args:
        graph: the steps.
        out: the study's folder, whose finished steps take nothing more.
        devices: devices that train together; by default the study's.
        flops: FLOPs per second of each device; by default the study's.

    Raises:
        ImpRAGError: a model is not available, or local data cannot be read.
    """

    def __init__(
        self,
        graph: Graph,
        out: Path | None = None,
        *,
        devices: int | None = None,
        flops: float | None = None,
    ) -> None:
        self.graph = graph
        self.devices = graph.study.devices if devices is None else devices
        self.flops = graph.study.flops if flops is None else flops
        self._data: dict[str, tuple[CorpusCost, list[SourceCost]]] = {}
        self._estimates: dict[str, CostEstimate] = {}
        status = {} if out is None else status_of(graph, out)
        self.steps = [
            self._plan(step, status.get(name) == "done") for name, step in graph.steps.items()
        ]

    @property
    def hours(self) -> float:
        """Hours of all steps that are not finished, one after the other."""
        return sum(one.hours for one in self.steps if not one.done)

    @property
    def disk(self) -> float:
        """Bytes that all steps leave, and the largest checkpoints, which are deleted later."""
        largest = max((one.checkpoints for one in self.steps), default=0.0)
        return largest + sum(one.disk for one in self.steps)

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON-like values; sizes are in bytes."""
        steps = [
            {
                "name": one.step.name,
                "done": one.done,
                "hours": one.hours,
                "memory": round(one.memory),
                "disk": round(one.disk),
                "checkpoints": round(one.checkpoints),
                "needs": list(one.step.needs),
                "command": list(one.step.command),
            }
            for one in self.steps
        ]
        return {
            "devices": self.devices,
            "flops_per_device": self.flops,
            "steps": steps,
            "hours": self.hours,
            "memory": round(max((one.memory for one in self.steps), default=0)),
            "disk": round(self.disk),
            "missing": self.graph.missing(),
            "notes": self.graph.notes,
        }

    def __str__(self) -> str:
        return "\n".join(self._text())

    def _text(self) -> Iterator[str]:
        rows = [
            [
                one.step.name,
                "yes" if one.done else "",
                f"{one.hours:,.2f}" if one.hours else "",
                readable_size(one.memory) if one.memory else "",
                readable_size(one.disk) if one.disk else "",
                readable_size(one.checkpoints) if one.checkpoints else "",
            ]
            for one in self.steps
        ]
        yield markdown_table(
            ["step", "done", "hours", "memory of a device", "disk", "checkpoints"], rows
        )
        largest = max((one.memory for one in self.steps), default=0)
        yield (
            f"{len(self.steps)} steps, {self.hours:,.1f} hours on {self.devices} device(s) of "
            f"{self.flops:.3g} FLOP/s, {readable_size(largest)} on each, "
            f"{readable_size(self.disk)} of disk"
        )
        yield from self.graph.notes
        if missing := self.graph.missing():
            yield f"\n{len(missing)} files are missing; get each by its command:"
            yield from (f"  {name}: {how}" for name, how in missing.items())

    def _plan(self, step: Step, done: bool) -> StepPlan:
        if step.recipe is None:
            return StepPlan(step, done)
        estimate = self._estimate(step.recipe)
        model = estimate.model
        passages = estimate.corpus.passages or WIKIPEDIA_PASSAGES
        if step.kind == "train":
            kept = 1 + step.recipe.trainer["save_total_limit"]
            saved = 4.0 * model.total if step.recipe.lora is None else 4.0 * model.trained
            checkpoints = kept * (saved + 8.0 * model.trained)
            memory = estimate.memory()["total, replicated (DDP)"]
            hours = estimate.hours
            if step.recipe.system in ("ra-dit", "ra-dit-lm"):  # its retriever labels the prompts
                hours += estimate.embedding_hours(passages)
            return StepPlan(step, done, hours, memory, saved, checkpoints)
        if step.kind == "index":
            disk = estimate.storage(passages)["flat float16"]
            return StepPlan(step, done, estimate.embedding_hours(passages), 0.0, disk)
        assert step.evaluation is not None
        examples = self.graph.study.evaluations[step.evaluation].examples
        read = examples * step.recipe.model.k * estimate.corpus.passage_tokens
        if step.kind == "kv":
            hours = self._hours(estimate, read * (model.t + 1))
            return StepPlan(step, done, hours, 0.0, read * model.kv_bytes)
        layers = model.layers if step.recipe.system != "imprag" else model.t + 1
        prompts = max((one.prompt_tokens for one in estimate.sources if one.retrieves), default=0)
        written = examples * (prompts + _NEW_TOKENS) * model.layers
        return StepPlan(step, done, self._hours(estimate, read * layers + written))

    def _hours(self, estimate: CostEstimate, layer_tokens: float) -> float:
        """Hours of a forward pass on one device."""
        return 2 * layer_tokens * estimate.model.layer_parameters / self.flops / 3600

    def _estimate(self, recipe: Recipe) -> CostEstimate:
        """The estimate of a recipe; seeds share it, and recipes share what is measured of data."""
        content = json.loads(recipe.model_dump_json())
        content["trainer"].pop("seed")
        key = json.dumps(content)
        if key not in self._estimates:
            model = content["model"]
            parts = [content[name] for name in ("data", "corpus", "batch", "teacher")]
            text = [model[n] for n in ("base", "max_passage_tokens", "passage_template")]
            data = json.dumps([*parts, *text])
            if data not in self._data:
                self._data[data] = estimate_data(recipe)
            self._estimates[key] = CostEstimate(
                recipe, devices=self.devices, flops=self.flops, data=self._data[data]
            )
        return self._estimates[key]


def check_devices(devices: int | None, flops: float | None) -> None:
    """Refuse numbers that are not positive.

    Raises:
        ImpRAGError: one is not.
    """
    if (devices is not None and devices < 1) or (flops is not None and not flops > 0):
        raise ImpRAGError("--devices must be at least 1, and --flops above 0")
