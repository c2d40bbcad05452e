"""The recipe's section `lora`: adapters instead of full fine-tuning."""

from typing import Annotated, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from imprag.errors import ImpRAGError
from imprag.training.sources import Section


class LoraGroup(Section):
    """An adapter on one group of layers: `bottom` (0..b), `reading` (b+1..t) or `top` (above t)."""

    rank: PositiveInt = 16
    """Rank of the two factors."""

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
    """Also trains the norms of adapted groups; with `top`, the norm after the last layer too."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        groups = [group for group in (self.bottom, self.reading, self.top) if group is not None]
        if not groups:
            raise ImpRAGError("lora adapts no layers; give bottom, reading or top, or no lora")
        if not any(group.trained for group in groups):
            raise ImpRAGError("lora trains no layers; leave one group trained")
        return self
