"""The processes of a run: started by torchrun, joined here, ended together whatever happens."""

import atexit
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal, get_args, no_type_check

import torch
from torch import distributed as dist

from sma_core.errors import ConfigError, TrainingError

from .stopping import Stopped
from .watch import Watch

Sharding = Literal["ddp", "fsdp"]

# A collective that not all take part in ends by itself after this long, as the last resort; the
# watch is done much earlier.
_COLLECTIVE_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """One process's place among those of a run.

    Parameters
    ----------
    rank
        Its number, from 0. Rank 0 alone writes files and reports progress.
    size
        How many there are. With 1 nothing is ever sent.
    device
        Where it computes.
    sharding
        ``ddp``: every process holds the whole model. ``fsdp``: each holds its share of every
        weight, gradient and moment, and gathers a layer while it computes it.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    sharding: Sharding = "ddp"

    @property
    def main(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Add up numbers over all processes, in float64; every process gets the sums."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def from_main(self, values: Sequence[float]) -> list[float]:
        """Give every process the numbers of rank 0, so that all decide alike."""
        if self.size == 1:
            return list(values)
        sent = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.broadcast(sent, src=0)
        return sent.tolist()

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()


ALONE = Parallel()


@contextmanager
@no_type_check  # checked below, with errors of our own
def join(
    sharding: Sharding = "ddp", *, device: str | None = None, silence: float = 30.0
) -> Iterator[Parallel]:
    """Take part in the run that torchrun started; without torchrun, be alone.

    Reads the variables that torchrun sets: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT.
    When one process fails, is killed, freezes or is cut off, all others end too, within a minute,
    and name it: those that can raise `TrainingError`, those that hang in a collective are ended by
    force 10 seconds later.

    Parameters
    ----------
    sharding
        How models are spread.
    device
        ``cuda`` (NCCL) or ``cpu`` (gloo); by default CUDA where there is a GPU. A process takes
        the GPU of its local rank.
    silence
        Seconds without a sign of life after which a process counts as lost.

    Raises
    ------
    ConfigError
        `sharding` or `device` is unknown, or there are more processes than GPUs.
    TrainingError
        Another process failed; the message names it.
    """
    if sharding not in get_args(Sharding):
        raise ConfigError(f"sharding: must be ddp or fsdp, not {sharding!r}")
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind not in ("cuda", "cpu"):
        raise ConfigError(f"device: must be cuda or cpu, not {kind!r}")
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    place = _place(kind, int(os.environ.get("LOCAL_RANK", 0)))
    if size == 1:
        yield Parallel(device=place, sharding=sharding)
        return

    if not dist.is_available():
        raise ConfigError("WORLD_SIZE: this build of PyTorch has no torch.distributed: use another")
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        timeout=_COLLECTIVE_TIMEOUT,
        device_id=place if kind == "cuda" else None,
    )
    watch = Watch(rank, size, silence=silence)
    try:
        yield Parallel(rank=rank, size=size, device=place, sharding=sharding)
        dist.barrier()
    except Stopped:
        dist.barrier()  # all come here: they agreed on the step to stop after
        _leave(watch)
        raise
    except BaseException as error:
        cause = watch.blame(error)
        if kind == "cuda":
            # Behind a collective that never ends, an orderly exit would wait for ever.
            atexit.register(_exit_at_once)
        if cause is None:
            watch.report(f"{type(error).__name__}: {error}")
            raise
        raise TrainingError(cause) from error
    _leave(watch)


def _place(kind: str, local_rank: int) -> torch.device:
    if kind == "cpu":
        return torch.device("cpu")
    found = torch.cuda.device_count()
    if local_rank >= found:
        raise ConfigError(
            f"device: process {local_rank} of this machine has no GPU, there are {found}: start "
            f"torchrun with --nproc-per-node {found}, or join with device='cpu'"
        )
    place = torch.device("cuda", local_rank)
    torch.cuda.set_device(place)
    return place


def _leave(watch: Watch) -> None:
    watch.close()
    dist.destroy_process_group()


def _exit_at_once() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
