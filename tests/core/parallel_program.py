"""Processes that train together; a program, as a hang must not take the tests with it.

``python -m tests.core.parallel_program rank WHAT FOLDER [CASE ...]`` is one process, in torchrun's
environment. It does WHAT with data sets and runs in FOLDER: ``fit`` trains the cases to their end;
``stop`` asks rank 1 to stop in step 4; ``raise``, ``kill`` and ``freeze`` end rank 1 in step
4; ``interrupt`` is a Ctrl-C for torchrun in step 4.

``python -m tests.core.parallel_program launch FOLDER [DEVICE]`` starts what `LAUNCHES` lists
for that device. Errors of a rank go to ``FOLDER/LABEL.RANK``, exit codes to ``FOLDER/exits.json``.
"""

import importlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import torch
from tests.core.tasks import SHORT, small_sma, small_transformer

from sma_core.config import ArchitectureConfig, HeadConfig
from sma_core.dataset import PreparedDataset
from sma_core.parallel import Parallel, Sharding, join
from sma_core.policy_configs import TopKConfig
from sma_core.training import TrainingConfig, fit
from sma_core.training_step import Stepper, StepResult

MARKED = HeadConfig(kind="sequence_classification", outputs=2)
BRIEF = replace(SHORT, max_steps=8)
SLOTS = replace(small_sma(MARKED), dispatch="capacity")
STEERED = replace(BRIEF, batch_size=3, target_rate=0.4, z_weight=1e-2, entropy_weight=1e-2)


class Case(NamedTuple):
    """What to train, and how the processes share it."""

    model: ArchitectureConfig
    training: TrainingConfig
    data: str = "sines"
    sharding: Sharding = "ddp"
    dtype: torch.dtype = torch.float64


# Of a batch of 3, four processes leave one without a window. What one process computes stands first
# in each group; the others must give its numbers.
CASES = {
    "steered": Case(small_sma(), STEERED),
    "steered fsdp": Case(small_sma(), STEERED, sharding="fsdp"),
    "marked": Case(small_sma(MARKED), replace(BRIEF, positive_weight=2.5), "markers"),
    "marked parts": Case(
        small_sma(MARKED),
        replace(BRIEF, positive_weight=2.5, accumulation_steps=3, activation_checkpointing=True),
        "markers",
    ),
    "marked parts fsdp": Case(
        small_sma(MARKED),
        replace(BRIEF, positive_weight=2.5, accumulation_steps=2, activation_checkpointing=True),
        "markers",
        sharding="fsdp",
    ),
    "top-k": Case(replace(small_sma(), policy=TopKConfig(rate=0.5)), replace(BRIEF, batch_size=3)),
    "transformer": Case(small_transformer(), BRIEF),
    "transformer fsdp": Case(small_transformer(), BRIEF, sharding="fsdp"),
    "narrow": Case(small_sma(), replace(BRIEF, precision="bfloat16"), dtype=torch.float32),
    "slots": Case(SLOTS, replace(BRIEF, positive_weight=2.5), "markers"),
    "slots compiled": Case(
        SLOTS,
        replace(BRIEF, positive_weight=2.5, accumulation_steps=2, compile="model"),
        "markers",
    ),
    "slots compiled fsdp": Case(
        SLOTS,
        replace(BRIEF, positive_weight=2.5, activation_checkpointing=True, compile="layers"),
        "markers",
        sharding="fsdp",
    ),
}


class Launch(NamedTuple):
    """So many processes that do something."""

    label: str
    processes: int
    what: str
    cases: tuple[str, ...]


LAUNCHES = {
    "cpu": (
        Launch("two", 2, "fit", ("steered", "marked parts fsdp", "transformer fsdp", "narrow")),
        Launch("four", 4, "fit", ("steered", "steered fsdp", "marked parts", "top-k")),
        Launch("stop", 2, "stop", ("steered fsdp",)),
        Launch("taken up", 4, "fit", ("steered fsdp",)),
        Launch("raise", 2, "raise", ("steered",)),
        Launch("kill", 3, "kill", ("steered",)),
    ),
    # Two GPUs are enough.
    "cuda": (
        Launch("two", 2, "fit", ("steered", "marked parts fsdp", "transformer fsdp", "narrow")),
        Launch("compiled", 2, "fit", ("slots compiled", "slots compiled fsdp")),
        Launch("stop", 2, "stop", ("steered fsdp",)),
        Launch("taken up", 1, "fit", ("steered fsdp",)),
        Launch("raise", 2, "raise", ("steered",)),
        Launch("kill", 2, "kill", ("steered",)),
    ),
}
ALONE = ("steered", "marked", "top-k", "transformer", "narrow", "slots")
SIGNALS = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP, "stop": signal.SIGINT}
PATIENCE = 100.0  # seconds, after which a process counts as hanging


def train(name: str, folder: Path, parallel: Parallel) -> None:
    """Train a case in its own folder."""
    case = CASES[name]
    torch.set_default_dtype(case.dtype)
    data = PreparedDataset.open(folder.parent / case.data)
    fit(
        case.model,
        data,
        case.training,
        folder / name,
        parallel=replace(parallel, sharding=case.sharding),
    )


def disturb(what: str, rank: int) -> None:
    """Let something happen to rank 1 in step 4."""
    take = Stepper.take

    def disturbed(self: Stepper, step: int, *args: object, **options: bool) -> StepResult:
        if step == 3 and rank == 1:
            if what == "raise":
                raise ValueError("the disk is full")
            if what == "interrupt":
                interrupt_parent()
            else:
                os.kill(os.getpid(), SIGNALS[what])
        return take(self, step, *args, **options)  # type: ignore[arg-type]

    Stepper.take = disturbed  # type: ignore[method-assign]


def interrupt_parent() -> None:
    """Send torchrun a Ctrl-C, and wait until it hands it on to this process."""
    came, handler = threading.Event(), signal.getsignal(signal.SIGINT)

    def on_signal(number: int, frame: FrameType | None) -> None:
        assert callable(handler)
        handler(number, frame)
        came.set()

    signal.signal(signal.SIGINT, on_signal)
    os.kill(os.getppid(), signal.SIGINT)
    assert came.wait(PATIENCE / 2)


def take_part(what: str, folder: Path, names: tuple[str, ...], device: str = "cpu") -> None:
    """Be one process."""
    torch.set_num_threads(1)
    # Short where silence is waited for; elsewhere a busy machine must not be taken for a lost one.
    silence = 6.0 if what in ("kill", "freeze") else 60.0
    with join(device=device, silence=silence) as parallel:
        if what != "fit":
            disturb(what, parallel.rank)
        for name in names:
            train(name, folder, parallel)


def be_rank(launch: Launch, rank: int, port: int, folder: Path, device: str) -> None:
    """Be one process of a launch: torchrun's environment, and a file for errors."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"WORLD_SIZE": str(launch.processes), "MASTER_PORT": str(port)}
    with (folder / f"{launch.label}.{rank}").open("w", encoding="utf-8") as errors:
        os.dup2(errors.fileno(), sys.stderr.fileno())
        # Who takes up a run does it where the stopped one left it.
        place = "stop" if launch.label == "taken up" else launch.label
        take_part(launch.what, folder / place, launch.cases, device)


def launch_all(folder: Path, device: str) -> None:
    """Start launch after launch; each gets `PATIENCE`."""
    # One process alone trains in this one, so that all imports are done before the forks: they take
    # longer than all the rest. A process that has touched a GPU cannot be forked.
    importlib.import_module("torch.distributed.fsdp")
    take_part("fit", folder / "one", ALONE, device)
    fork, spawn = multiprocessing.get_context("fork"), multiprocessing.get_context("spawn")
    context = fork if device == "cpu" else spawn
    exits: dict[str, list[int | None]] = {}
    for launch in LAUNCHES[device]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes = [
            context.Process(target=be_rank, args=(launch, rank, port, folder, device))
            for rank in range(launch.processes)
        ]
        end = time.monotonic() + PATIENCE
        for process in processes:
            process.start()
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))
        exits[launch.label] = [process.exitcode for process in processes]  # None: it hangs
        for process in processes:
            process.kill()
    (folder / "exits.json").write_text(json.dumps(exits))


if __name__ == "__main__":
    if sys.argv[1] == "launch":
        launch_all(Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "cpu")
    else:
        take_part(sys.argv[2], Path(sys.argv[3]), tuple(sys.argv[4:]))
