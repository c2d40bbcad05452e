"""The schedule of a run: the stage, the mining and the passage length of each step."""

from dataclasses import dataclass
from typing import Literal

from imprag.training.recipe import Recipe

Stage = Literal["bottom", "warmup", "self_distillation"]


@dataclass(frozen=True)
class Schedule:
    """The stages of a recipe over a number of optimizer steps.

    Args:
        recipe: gives the stages' fractions.
        steps: number of optimizer steps of the run.
    """

    recipe: Recipe
    steps: int

    def stage(self, step: int) -> Stage:
        """The stage of a step, counted from 0 (paper, section 3)."""
        if step < self._warmup:
            return "bottom"
        return "warmup" if step < self._self_distillation else "self_distillation"

    def last_mined(self, step: int) -> int | None:
        """The last step, up to this one, at which hard negatives are mined; None before any."""
        stage, every = self.stage(step), self.recipe.stages.mine_every
        if every is None or stage == "bottom":
            return None
        first = self._warmup if stage == "warmup" else self._self_distillation
        return step - (step - first) % every

    def generates(self, step: int) -> bool:
        """Whether a step has a generation loss; in the bottom stage, every n-th step has."""
        if self.stage(step) != "bottom":
            return True
        assert self.recipe.stages.bottom is not None
        every = self.recipe.stages.bottom.generate_every
        return every > 0 and step % every == 0

    def passage_tokens(self, step: int) -> int:
        """Length limit of passages that are only embedded, by the length curriculum if any."""
        limit = self.recipe.model.max_passage_tokens
        for part in self.recipe.batch.passage_tokens:
            if step >= part.after * self.steps:
                limit = part.tokens
        return limit

    @property
    def _bottom(self) -> float:
        bottom = self.recipe.stages.bottom
        return bottom.fraction if bottom else 0.0

    @property
    def _warmup(self) -> int:
        """The first step of warmup."""
        return round(self._bottom * self.steps)

    @property
    def _self_distillation(self) -> int:
        """The first step of self-distillation."""
        return round((self._bottom + self.recipe.stages.warmup.fraction) * self.steps)
