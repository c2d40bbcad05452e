"""Which stage a step belongs to, and how long passages may be."""

from dataclasses import dataclass
from typing import Literal

from imprag.training.recipe import Recipe

Stage = Literal["bottom", "warmup", "self_distillation"]


@dataclass(frozen=True)
class Schedule:
    """The stages of a recipe over a number of optimizer steps.

    Args:
        recipe: says the fractions.
        steps: of the optimizer, in all.
    """

    recipe: Recipe
    steps: int

    def stage(self, step: int) -> Stage:
        """The stage of a step, counted from 0 (paper, section 3)."""
        stages = self.recipe.stages
        bottom = stages.bottom.fraction if stages.bottom else 0.0
        if step < round(bottom * self.steps):
            return "bottom"
        if step < round((bottom + stages.warmup.fraction) * self.steps):
            return "warmup"
        return "self_distillation"

    def generates(self, step: int) -> bool:
        """Whether responses are generated in a step; in the bottom stage, every n-th time."""
        if self.stage(step) != "bottom":
            return True
        assert self.recipe.stages.bottom is not None
        every = self.recipe.stages.bottom.generate_every
        return every > 0 and step % every == 0

    def passage_tokens(self, step: int) -> int:
        """The longest passage that is only embedded in a step; a curriculum may begin with less."""
        limit = self.recipe.model.max_passage_tokens
        for part in self.recipe.batch.passage_tokens:
            if step >= part.after * self.steps:
                limit = part.tokens
        return limit
