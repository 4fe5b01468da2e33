"""``stream``: latency of a model's step by batch and by position in the stream."""

import argparse
from collections.abc import Callable

import torch

from sma_core.bench.equality import check_small
from sma_core.bench.options import add_timing_options, names_in, numbers_in, positive
from sma_core.bench.streams import (
    EagerStep,
    RecordedStep,
    check_stream,
    draw_events,
    routed_model,
    stream_config,
)
from sma_core.bench.tables import Report, number
from sma_core.bench.timing import Deadline, failure_text, synchronise, time_in_turn
from sma_core.model import SMAModel

STEPS: dict[str, type[EagerStep] | type[RecordedStep]] = {
    "eager": EagerStep,
    "captured": RecordedStep,
}
GOAL = 1.05
COLUMNS = ("mode", "batch", "position", "p50 ms", "± IQR", "events/s")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``stream``."""
    add_timing_options(parser)
    parser.set_defaults(iterations=100, warmup=10)
    parser.add_argument("--width", type=positive, default=64)
    parser.add_argument("--layers", type=positive, default=4)
    parser.add_argument("--window", type=positive, default=64)
    parser.add_argument("--density", type=float, default=0.1, help="share of events that run")
    parser.add_argument(
        "--batches", type=numbers_in(int), default=[1, 16, 256, 4096], metavar="B,B,..."
    )
    parser.add_argument(
        "--positions", type=numbers_in(int), default=[1_000, 1_000_000], metavar="T,T,..."
    )
    parser.add_argument("--modes", type=names_in(tuple(STEPS)), default=list(STEPS))
    parser.add_argument("--check-steps", type=positive, default=300)


def run(options: argparse.Namespace, report: Report, device: torch.device) -> None:
    """Check, time each position in turn, print."""
    deadline = Deadline(options.budget_s)
    check_small(device, steps=options.check_steps, seed=options.seed)
    config = stream_config(width=options.width, layers=options.layers, window=options.window)
    model = routed_model(config, device, seed=options.seed)
    for mode in options.modes:
        try:
            check_stream(mode, model, STEPS[mode])
        except RuntimeError as error:  # of the capture, not of the comparison
            report.note(f"{mode}: {failure_text(error)}")
            continue
        for batch in options.batches:
            if deadline.passed:
                report.note(f"{mode}, batch {batch:,}: skipped, no time left")
                continue
            try:
                _run_batch(options, report, device, deadline, model, mode, batch)
            except RuntimeError as error:
                report.note(f"{mode}, batch {batch:,}: {failure_text(error)}")
    report.print_goals()


def _run_batch(
    options: argparse.Namespace,
    report: Report,
    device: torch.device,
    deadline: Deadline,
    model: SMAModel,
    mode: str,
    batch: int,
) -> None:
    events = draw_events(64, batch, options.density, device, seed=options.seed)
    steps: dict[str, Callable[[], None]] = {}
    for position in options.positions:
        state = model.init_state(batch)
        state.position.fill_(max(0, position - options.window - 1))
        step = STEPS[mode](model, state)
        full = draw_events(options.window + 1, batch, 1.0, device, seed=1)
        for event in full:  # windows are full from here on
            step(event)
        steps[f"{position}"] = _walk(step, events, device)
    found = time_in_turn(
        steps,
        device,
        rounds=options.rounds,
        iterations=options.iterations,
        warmup=options.warmup,
        deadline=deadline,
    )
    rows = []
    for position in options.positions:
        result = found[f"{position}"]
        median = result.median
        rate = None if median is None else 1000 * batch / median
        report.add(
            mode=mode, batch=batch, position=position, events_per_s=rate, step=result.as_json()
        )
        rows.append(
            (
                mode,
                f"{batch:,}",
                f"{position:,}",
                result.failure or number(median),
                number(result.spread),
                number(rate),
            )
        )
    first, last = (found[f"{p}"].median for p in (options.positions[0], options.positions[-1]))
    if len(options.positions) > 1:
        what = (
            f"{mode}, batch {batch:,}: p50 at {options.positions[-1]:,} over that at "
            f"{options.positions[0]:,}"
        )
        ratio = last / first if first and last is not None else None
        report.goal(what, ratio, GOAL, at_least=False)
    report.table(COLUMNS, rows)


def _walk(
    step: EagerStep | RecordedStep, events: list[torch.Tensor], device: torch.device
) -> Callable[[], None]:
    """One event after the other, each answered before the next comes."""
    taken = 0

    def advance() -> None:
        nonlocal taken
        step(events[taken % len(events)])
        taken += 1
        synchronise(device)

    return advance
