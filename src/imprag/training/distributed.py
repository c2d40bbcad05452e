"""Collectives that make several processes compute the loss of one process with all examples.

Without a process group, or in a group of one, every function returns its argument.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """The rows of all processes, with gradients that flow back to the process of each row.

    Backward sums the gradients of all processes' losses with respect to a row. So all processes
    must run backward through the result, or none, even a process without rows. Call it after the
    forward passes of the language model: its backward then comes first, before DDP begins to
    average gradients, and all processes communicate in the same order.

    Args:
        tensor: (own rows, ...); only the number of rows may differ between processes.

    Returns:
        (all rows, ...), ordered by rank.
    """
    if _world_size() == 1:
        return tensor
    gathered: Tensor = _Gather.apply(tensor)  # type: ignore[no-untyped-call]
    return gathered


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a number over all processes, in float32, without gradient.

    Pass the mean of the processes' counts as ``count`` of an objective. The mean of the processes'
    losses, and so the gradient that DDP and FSDP average, is then that of the whole batch.
    """
    mean = value.detach().float()
    if _world_size() == 1:
        return mean
    mean = mean.clone()
    dist.all_reduce(mean)
    return mean / _world_size()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        parts = _gather_parts(tensor)
        ctx.own = _own_rows(parts)
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient[ctx.own]


def _gather_parts(tensor: Tensor) -> list[Tensor]:
    """The tensors of all processes; they may differ in their number of rows only."""
    size = torch.tensor([len(tensor)], device=tensor.device)
    sizes = [torch.empty_like(size) for _ in range(_world_size())]
    dist.all_gather(sizes, size)
    rows = [int(n) for n in sizes]
    # Collectives need equal shapes, so all tensors are padded to the most rows.
    padded = tensor.new_zeros(max(rows), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in rows]
    dist.all_gather(parts, padded)
    return [part[:n] for part, n in zip(parts, rows, strict=True)]


def _own_rows(parts: list[Tensor]) -> slice:
    rank = dist.get_rank()
    begin = sum(len(part) for part in parts[:rank])
    return slice(begin, begin + len(parts[rank]))


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
