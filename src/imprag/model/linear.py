"""Linear layers whose products with few tokens are shared between threads."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FEW = 32  # tokens


class SharedLinear(nn.Linear):
    """A linear layer that gives each thread a part of its outputs, if there are few tokens.

    BLAS libraries compute products with one token in a single thread, and with a few tokens hardly
    faster. They are bound by reading the weights, which two threads do nearly twice as fast. In
    float32 on a CPU and without gradients; otherwise it is a plain linear layer.
    """

    def forward(self, input: Tensor) -> Tensor:
        tokens = input.numel() // self.in_features
        parts = torch.get_num_threads()
        if (
            tokens > _FEW
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or input.dtype != torch.float32
            or input.device.type != "cpu"
            or self.out_features % parts
            or not self.weight.is_contiguous()
        ):
            return super().forward(input)
        rows = input.reshape(tokens, self.in_features)
        weights = self.weight.view(parts, -1, self.in_features)
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
    """Turn the linear layers of a model into :class:`SharedLinear`; their weights stay theirs."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = SharedLinear
