"""The recipe's section `lora`: adapters instead of full fine-tuning."""

from typing import Annotated, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from imprag.errors import ImpRAGError
from imprag.training.sources import Section


class LoraGroup(Section):
    """An adapter on one group of layers: `bottom` (0..b), `reading` (b+1..t) or `top` (above t)."""

    rank: PositiveInt = 16
    """Rank of the two factors. An adapter that is not trained has instead the rank of what it
    keeps, which is the full rank if `model.start` was fully trained or rounded to 16 bits."""

    alpha: PositiveFloat = 32.0
    """Scales the adapter by alpha / rank."""

    trained: bool = True
    """Whether the adapter is trained; otherwise it keeps the weights of `model.start`."""


class LoraSettings(Section):
    """Adapters instead of full fine-tuning (beyond the paper). A group without one is frozen."""

    bottom: LoraGroup | None = None
    reading: LoraGroup | None = None
    top: LoraGroup | None = None

    targets: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    """Names of the projections that are adapted. Change them for models with other names; the error
    for an unknown name lists the model's own."""

    norms: bool = False
    """Also trains the norms of adapted groups; with the last group, the norm after the last layer.
    Needed if `model.start` was fully trained, as its norms would be lost."""

    @property
    def groups(self) -> dict[str, LoraGroup]:
        """The groups with an adapter, by name."""
        groups = {"bottom": self.bottom, "reading": self.reading, "top": self.top}
        return {name: group for name, group in groups.items() if group is not None}

    @property
    def held(self) -> list[str]:
        """Names of the groups that are not trained."""
        return [name for name, group in self.groups.items() if not group.trained]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.groups:
            raise ImpRAGError("lora adapts no layers; give bottom, reading or top, or no lora")
        if len(self.held) == len(self.groups):
            raise ImpRAGError("lora trains no layers; leave one group trained")
        return self
