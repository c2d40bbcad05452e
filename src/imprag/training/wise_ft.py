"""The mean of the weights that training began with and those that it came to.

Fine-tuning gains in what it is shown and loses elsewhere. Half of the way back, most of the gain is
still there and most of the loss is not (Wortsman et al., "Robust fine-tuning of zero-shot models",
2022).
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
def move_back(model: nn.Module, beginning: dict[str, Tensor], share: float) -> None:
    """Move parameters towards former values, in place.

    An adapter's two factors are moved one by one. Their product is then not exactly the mean of the
    two products: it lacks share · (1 - share) times the product of the factors' changes.

    Args:
        model: the model.
        beginning: of :func:`trained_weights`; other parameters stay.
        share: of the former values in the mean.
    """
    for name, parameter in model.named_parameters():
        if name in beginning:
            parameter.lerp_(beginning[name].to(parameter), share)
