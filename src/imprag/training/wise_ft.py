"""Interpolation of initial and trained weights (WiSE-FT).

Fine-tuning improves a model on its training distribution and degrades it elsewhere. Interpolation
keeps most of the gain and undoes most of the loss (Wortsman et al., "Robust fine-tuning of
zero-shot models", 2022).
"""

import torch
from torch import Tensor, nn


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the trainable parameters in CPU memory, by name."""
    return {
        name: parameter.detach().to("cpu", copy=True)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


@torch.no_grad()
def interpolate(model: nn.Module, initial: dict[str, Tensor], alpha: float) -> None:
    """Set parameters to (1 - alpha) · initial + alpha · trained, in place.

    The two factors of an adapter are interpolated separately. Their product then differs from the
    interpolation of the products by alpha · (1 - alpha) times the product of the factors' changes.

    Args:
        model: the trained model.
        initial: weights before training, from :func:`trained_weights`; other parameters stay.
        alpha: weight of the trained model; 1 leaves it as it is.
    """
    for name, parameter in model.named_parameters():
        if name in initial:
            parameter.lerp_(initial[name].to(parameter), 1 - alpha)
