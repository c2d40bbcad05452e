"""Groups of processes (gloo) for tests; their processes are started once, which takes seconds."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from multiprocessing import get_context
from tempfile import TemporaryDirectory
from typing import Any, TypeVar
from unittest.mock import patch

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

T = TypeVar("T")


@cache
def _process(rank: int) -> ProcessPoolExecutor:
    # A process keeps its rank: torch.distributed.tensor remembers what it did for one.
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def in_group(size: int, scenario: Callable[..., T], *arguments: Any) -> list[T]:
    """Run ``scenario(rank, *arguments)`` in a group of processes; the results by rank.

    A scenario is a function of a module, and of its results only those arrive that can be pickled.
    """
    with TemporaryDirectory() as meeting:
        runs = [
            _process(rank).submit(_member, rank, size, meeting, scenario, *arguments)
            for rank in range(size)
        ]
        return [run.result() for run in runs]


def _member(rank: int, size: int, meeting: str, scenario: Callable[..., T], *arguments: Any) -> T:
    torch.set_num_threads(1)
    torchrun = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    torchrun |= {"MASTER_ADDR": "127.0.0.1"}
    with patch.dict(os.environ, {name: str(value) for name, value in torchrun.items()}):
        place, patience = f"file://{meeting}/group", timedelta(seconds=240)
        dist.init_process_group("gloo", place, patience, rank=rank, world_size=size)
        try:
            result = scenario(rank, *arguments)
            dist.barrier()  # gloo fails in a process that waits for one that has left
        finally:
            dist.destroy_process_group()
            AcceleratorState._reset_state(reset_partial_state=True)
    return result


@contextmanager
def fsdp2() -> Iterator[None]:
    """Let accelerate shard with FSDP2 on CPUs, which it does on accelerators only."""
    find = PartialState._prepare_backend

    def prepare(*arguments: Any, **others: Any) -> tuple[str, DistributedType]:
        return find(*arguments, **others)[0], DistributedType.MULTI_GPU

    asked = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "ACCELERATE_TORCH_DEVICE": "cpu"}
    with patch.dict(os.environ, asked), patch.object(PartialState, "_prepare_backend", prepare):
        yield


@contextmanager
def quick_evaluation() -> Iterator[None]:
    """Evaluate without reports, and share small batches of passages between processes."""
    with (
        patch("imprag.evaluation.runner.write_report", lambda run, corpus: None),
        patch("imprag.training.ranking._PASSAGES", 12),
    ):
        yield
