"""Collectives that make several processes give the results of one.

Without a process group, or in a group of one, every function returns its argument.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

T = TypeVar("T")


def is_main_process() -> bool:
    """Whether this process is the one that writes files."""
    return _rank() == 0


def from_main_process(value: T) -> T:
    """The main process's value, in all processes."""
    values = [value]
    if _world_size() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def process_share(count: int, block: int = 1) -> range:
    """This process's share of ``range(count)``: contiguous, in the order of the ranks.

    Args:
        count: the number of items.
        block: shares are made of whole blocks of this many items, counted from 0, so that they can
            be processed in the batches of a single process. With fewer blocks than processes, some
            shares are empty.
    """
    blocks, rank, size = -(-count // block), _rank(), _world_size()
    begin, end = (block * (blocks * n // size) for n in (rank, rank + 1))
    return range(min(begin, count), min(end, count))


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """Give a model whole weights where FSDP2 shards them, so that each process can run it alone.

    All processes enter together. Inside, they may run any number of passes through parts of the
    model, but none through ``model`` itself. Weights are whole in their own dtype, not in the one
    that layers compute in.

    Args:
        model: the module that was given to ``fully_shard``; any other stays as it is.
    """
    # FSDP2's own `unshard` would be undone by the first `state_dict`, such as a fingerprint's.
    places = [
        (module, name, weight)
        for module in model.modules()
        for name, weight in module.named_parameters(recurse=False)
        if _is_sharded(weight)
    ]
    sharded: dict[int, Any] = {id(weight): weight for _, _, weight in places}  # tied ones once
    whole = {key: nn.Parameter(x.detach().full_tensor(), False) for key, x in sharded.items()}
    try:
        for module, name, weight in places:
            setattr(module, name, whole[id(weight)])
        yield
    finally:
        for module, name, weight in places:
            setattr(module, name, weight)


def shards_of(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Whole weights in the form that ``model.load_state_dict`` takes: sharded by FSDP2, or whole.

    Args:
        weights: the same in all processes; by other names than the model's, too.
        model: the model.
    """
    sharded: list[Any] = [weight for weight in model.parameters() if _is_sharded(weight)]
    if not sharded:
        return dict(weights)
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = sharded[0].device_mesh, sharded[0].placements
    buffers = dict(model.named_buffers())
    return {
        name: x if name in buffers else distribute_tensor(x, mesh, placements, src_data_rank=None)
        for name, x in weights.items()
    }


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
    rank = _rank()
    begin = sum(len(part) for part in parts[:rank])
    return slice(begin, begin + len(parts[rank]))


def _is_sharded(weight: Tensor) -> bool:
    return hasattr(weight, "full_tensor")  # a DTensor


def _rank() -> int:
    return dist.get_rank() if _in_group() else 0


def _world_size() -> int:
    return dist.get_world_size() if _in_group() else 1


def _in_group() -> bool:
    return dist.is_available() and dist.is_initialized()
