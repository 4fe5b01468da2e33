"""The ways in which a trial ends without a result, and which error means which."""

from typing import Literal, get_args

import torch

from sma_core.errors import DivergenceError

Failure = Literal["failed", "diverged", "out_of_memory", "lost"]
"""``failed``: it threw. ``diverged``: a loss or gradient was not finite. ``out_of_memory``: on the
CPU, on the GPU, or killed by Ray before the machine ran out. ``lost``: its process or machine died
more often than the study allows."""

FAILURES: tuple[Failure, ...] = get_args(Failure)

# PyTorch has a class for a full GPU, but only this word for a full machine,
_CPU_ALLOCATOR = "DefaultCPUAllocator: can't allocate memory"
# and Ray only these for a worker that its memory monitor killed.
_MEMORY_MONITOR = "the node running low on memory"


def failure_of(error: BaseException) -> Failure:
    """Say how a trial that threw `error` ended; what an error was raised from counts too."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, DivergenceError):
            return "diverged"
        if isinstance(link, MemoryError | torch.OutOfMemoryError) or _CPU_ALLOCATOR in str(link):
            return "out_of_memory"
        link = link.__cause__
    return "failed"


def failure_of_death(told: str) -> Failure:
    """Say how a trial ended whose process died, by what Ray `told` of all its deaths, in order."""
    last = told.rpartition("Failure # ")[2]
    return "out_of_memory" if _MEMORY_MONITOR in last else "lost"
