"""Interpolation of initial and trained weights (WiSE-FT).

Fine-tuning gains on what it is shown and loses elsewhere. Halfway back, most of the gain is still
there and most of the loss is not (Wortsman et al., "Robust fine-tuning of zero-shot models", 2022).
"""

import torch
from torch import Tensor, nn


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy, in the CPU's memory, of the parameters that are trained."""
    return {
        name: parameter.detach().to("cpu", copy=True)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


@torch.no_grad()
def interpolate(model: nn.Module, initial: dict[str, Tensor], alpha: float) -> None:
    """Set parameters to (1 - alpha) · initial + alpha · trained, in place.

    An adapter's two factors are interpolated one by one. Their product is then not exactly the mean
    of the two products: it lacks alpha · (1 - alpha) times the product of the factors' changes.

    Args:
        model: the trained model.
        initial: weights before training, by :func:`trained_weights`; other parameters stay.
        alpha: weight of the trained model; 1 leaves it as it is.
    """
    for name, parameter in model.named_parameters():
        if name in initial:
            parameter.lerp_(initial[name].to(parameter), 1 - alpha)
