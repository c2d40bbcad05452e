"""Linear layers whose products with few tokens are shared between threads."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_FEW = 32  # tokens


class SharedLinear(nn.Linear):
    """A linear layer that gives each thread a part of its outputs, if there are few tokens.

    Such a product is bound by reading the weights, and BLAS libraries let one thread read them all.
    """

    def forward(self, input: Tensor) -> Tensor:
        tokens = input.numel() // self.in_features
        parts = torch.get_num_threads()
        if (
            not 0 < tokens <= _FEW
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or input.dtype != self.weight.dtype  # autocast
            or self.weight.device.type != "cpu"
            or self.out_features % parts
            or not self.weight.is_contiguous()
        ):
            return super().forward(input)
        rows = input.reshape(tokens, self.in_features)
        weights = self.weight.view(parts, -1, self.in_features)
        # Which of the two forms is faster depends on the number of tokens.
        if tokens <= 2:
            columns = torch.bmm(weights, rows.t().expand(parts, -1, -1))
            output = columns.reshape(self.out_features, tokens).t()
        else:
            columns = torch.bmm(rows.expand(parts, -1, -1), weights.transpose(1, 2))
            output = columns.transpose(0, 1).reshape(tokens, self.out_features)
        if self.bias is not None:
            output = output + self.bias
        return output.reshape(*input.shape[:-1], self.out_features)


def share_products(model: nn.Module) -> None:
    """Turn the float32 linear layers of a model on a CPU into :class:`SharedLinear`.

    They stay ``nn.Linear`` with the same weights.
    """
    for module in model.modules():
        if type(module) is nn.Linear:
            weight = module.weight
            if weight.dtype == torch.float32 and weight.device.type == "cpu":
                module.__class__ = SharedLinear


@contextmanager
def plain_products(model: nn.Module) -> Iterator[None]:
    """Within it, linear layers are PyTorch's own, as in a model without ImpRAG."""
    shared: list[nn.Module] = [module for module in model.modules() if type(module) is SharedLinear]
    for module in shared:
        module.__class__ = nn.Linear
    try:
        yield
    finally:
        for module in shared:
            module.__class__ = SharedLinear
