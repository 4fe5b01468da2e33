"""``profile``: where one layer's time goes, kernel by kernel."""

import argparse
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from sma_core.bench.cases import VARIANTS, Case, Problem, compiling
from sma_core.bench.equality import check_small
from sma_core.bench.measure import measure_cases
from sma_core.bench.options import (
    add_compile_options,
    add_layer_options,
    add_timing_options,
    layer_sizes,
    positive,
)
from sma_core.bench.tables import Report, number
from sma_core.bench.timing import Deadline, synchronise

_STEPS = 5  # profiled
COLUMNS = ("us a step", "share", "calls a step", "kernel")


class Kernel(NamedTuple):
    """What a kernel takes of a step."""

    name: str
    microseconds: float
    calls: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``profile``."""
    add_layer_options(parser)
    add_timing_options(parser)
    add_compile_options(parser)
    parser.add_argument("--length", type=positive, default=8192)
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--tokens", type=positive, default=65_536, help="of a step, B x L")
    parser.add_argument("--variant", choices=tuple(VARIANTS), default="capacity")
    parser.add_argument("--top", type=positive, default=30, help="kernels to print")
    parser.add_argument("--check-steps", type=positive, default=300)


def run(options: argparse.Namespace, report: Report, device: torch.device) -> None:
    """Check and time the layer, then count what its kernels take of a step."""
    check_small(device, steps=options.check_steps, seed=options.seed)
    made: list[Case] = []
    with compiling():
        problem = Problem(
            layer_sizes(options),
            batch=max(1, options.tokens // options.length),
            steps=options.length,
            density=options.density,
            device=device,
            rounded=options.dtype == "bfloat16",
            compiles=not options.compile_off,
            seed=options.seed,
        )

        def make() -> Case:
            made.append(problem.ours(options.variant))
            return made[0]

        deadline = Deadline(options.budget_s)
        makers = {options.variant: make}
        (timed,) = measure_cases(options, device, deadline, problem, makers, checks=True)
        if timed["failure"]:
            report.note(timed["failure"])
            return
        for kind in ("train", "infer"):
            step = partial(getattr(made[0], f"{kind}_step"))
            kernels = kernels_of(step, device)
            total = sum(kernel.microseconds for kernel in kernels)
            report.add(
                kind=kind,
                step=timed[kind],
                kernel_us=total,
                kernels=[kernel._asdict() for kernel in kernels],
            )
            report.note(
                f"{kind}: {number(timed[kind]['median_ms'])} ms a step, of which kernels take "
                f"{number(total / 1000)} ms"
            )
            report.table(
                COLUMNS,
                [
                    (
                        number(kernel.microseconds),
                        f"{kernel.microseconds / total:.1%}",
                        number(kernel.calls),
                        kernel.name,
                    )
                    for kernel in kernels[: options.top]
                ],
            )


def kernels_of(step: Callable[[], None], device: torch.device) -> list[Kernel]:
    """Profile some steps; on the CPU operators stand for kernels. The longest come first.

    Parameters
    ----------
    step
        Warmed up.
    device
        Where it runs.
    """
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    step()
    with profile(activities=activities, acc_events=True) as profiled:
        for _ in range(_STEPS):
            step()
        synchronise(device)
    times, calls = defaultdict[str, float](float), defaultdict[str, int](int)
    for event in profiled.events() or []:
        if cuda:
            if event.device_type.name == "CUDA":
                times[event.name] += event.device_time_total
                calls[event.name] += 1
        else:
            times[event.name] += event.self_cpu_time_total
            calls[event.name] += 1
    found = [Kernel(name, times[name] / _STEPS, calls[name] / _STEPS) for name in times]
    return sorted(found, key=lambda kernel: -kernel.microseconds)
