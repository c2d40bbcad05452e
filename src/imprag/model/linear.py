"""Linear layers whose products with few tokens are shared between threads."""

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_FEW = 32  # tokens
_PROBE = 2048, 1024  # outputs and inputs: 8 MB
_TRIES = 8


class SharedLinear(nn.Linear):
    """A linear layer that gives each thread a part of its outputs, if there are few tokens.

    Such a product is bound by reading the weights, and some BLAS libraries let one thread read them
    all: MKL does on processors of AMD, but not on those of Intel.
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
    """Turn the float32 linear layers of a model on a CPU into :class:`SharedLinear`, if that pays.

    They stay ``nn.Linear`` with the same weights.
    """
    if not sharing_pays(torch.get_num_threads()):
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            weight = module.weight
            if weight.dtype == torch.float32 and weight.device.type == "cpu":
                module.__class__ = SharedLinear


@functools.cache
@torch.no_grad()
def sharing_pays(threads: int) -> bool:
    """Whether shared products are faster on this machine, measured for one token.

    Args:
        threads: that PyTorch computes with.
    """
    if threads == 1:
        return False
    outputs, inputs = _PROBE
    token = torch.ones(1, inputs)
    seconds: dict[type[nn.Linear], float] = {}
    for kind in (nn.Linear, SharedLinear):
        # Without its initialisation, which would draw random numbers.
        layer = nn.utils.skip_init(kind, inputs, outputs, bias=False)  # type: ignore[no-untyped-call]
        layer.weight.fill_(1.0)
        times = []
        for _ in range(_TRIES):
            start = time.perf_counter()
            layer(token)
            times.append(time.perf_counter() - start)
        seconds[kind] = min(times)
    return seconds[SharedLinear] < seconds[nn.Linear]


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
