"""Settings of generation, checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from imprag.errors import ImpRAGError
from imprag.model.confidence import check_min_confidence
from imprag.model.generate_arguments import CALLBACKS, CHOICES, check_arguments


@dataclass(frozen=True)
class GenerationSettings:
    """Settings of generation.

    Attributes:
        max_new_tokens: the most new tokens of an answer.
        stop: strings that end an answer.
        arguments: further arguments of ``generate``, checked.
        attribution: sum up what each token read.
        min_confidence: withhold answers with less; None computes no confidence.
    """

    max_new_tokens: int
    stop: Sequence[str]
    arguments: dict[str, Any]
    attribution: bool = False
    min_confidence: float | None = None

    @classmethod
    def of(
        cls,
        max_new_tokens: int,
        stop: Sequence[str] | str | None,
        arguments: dict[str, Any],
        attribution: bool = False,
        min_confidence: float | None = None,
    ) -> "GenerationSettings":
        """Check and bundle the settings.

        Raises:
            ImpRAGError: an argument does not work with retrieval, or a stop string is empty.
        """
        check_min_confidence(min_confidence)
        arguments = _checked(arguments, max_new_tokens)
        length = arguments.pop("max_new_tokens")
        return cls(length, _stops(stop), arguments, attribution, min_confidence)


def _checked(arguments: dict[str, Any], max_new_tokens: int) -> dict[str, Any]:
    """Checked arguments of ``generate``, with those of a generation configuration merged in."""
    arguments = {**arguments, "max_new_tokens": max_new_tokens}
    arguments = check_arguments(arguments, {*CHOICES, *CALLBACKS})
    criteria = arguments.get("stopping_criteria")
    if criteria is not None and not isinstance(criteria, list | tuple):
        arguments["stopping_criteria"] = [criteria]
    config = arguments.pop("generation_config", None)
    if config is not None:
        chosen = {name: value for name, value in config.to_diff_dict().items() if name in CHOICES}
        # Only the length has a default here; the configuration's length replaces it.
        arguments = {
            **chosen,
            **arguments,
            **{n: x for n, x in chosen.items() if n == "max_new_tokens"},
        }
    return arguments


def _stops(stop: Sequence[str] | str | None) -> Sequence[str]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if not all(isinstance(text, str) and text for text in stops):
        raise ImpRAGError("stop must be strings that are not empty")
    return stops
