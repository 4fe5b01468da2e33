"""``cpu``: inference over sequences and step by step on few cores, in float32."""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from sma_core.baselines import dense_twin
from sma_core.bench.cases import Case, Problem
from sma_core.bench.equality import check_small
from sma_core.bench.measure import measure_cases
from sma_core.bench.options import (
    add_layer_options,
    add_timing_options,
    layer_sizes,
    numbers_in,
    positive,
)
from sma_core.bench.peers import load_class
from sma_core.bench.streams import (
    CHANNELS,
    EagerStep,
    check_stream,
    draw_events,
    routed_model,
    stream_config,
)
from sma_core.bench.tables import Report, number
from sma_core.bench.timing import Deadline, Step, Timings, time_in_turn
from sma_core.config import HeadConfig, InputConfig, TransformerConfig
from sma_core.errors import ConfigError
from sma_core.layer import SMALayer
from sma_core.model import SequenceModel, build_model
from sma_core.threads import compute_threads

SKIPPED_GOAL, EVENTS_GOAL = 0.4, 2_000.0
_EVENTS = 32  # different ones; all of them are one repetition of a model's step


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``cpu``."""
    add_layer_options(parser)
    add_timing_options(parser)
    parser.set_defaults(threads=2, device="cpu", rounds=3, iterations=5, warmup=1)
    parser.add_argument("--peer", metavar="FILE:CLASS", help="reference layer")
    parser.add_argument("--length", type=positive, default=4096)
    parser.add_argument("--tokens", type=positive, default=8192, help="of a pass, B x L")
    parser.add_argument(
        "--densities", type=numbers_in(float), default=[0.1, 1.0], metavar="P,P,..."
    )
    parser.add_argument("--step-batches", type=numbers_in(int), default=[1, 64])
    parser.add_argument(
        "--history", type=positive, default=1024, help="steps that a peer without state runs again"
    )
    parser.add_argument("--model-width", type=positive, default=64)
    parser.add_argument("--model-layers", type=positive, default=4)
    parser.add_argument("--model-batches", type=numbers_in(int), default=[1, 64, 256, 1024])
    parser.add_argument("--model-density", type=float, default=0.1)
    parser.add_argument("--check-steps", type=positive, default=300)


def run(options: argparse.Namespace, report: Report, device: torch.device) -> None:
    """Check, then time passes, the layer's step, and the model's step.

    Raises
    ------
    ConfigError
        The device is no CPU.
    """
    if device.type != "cpu":
        raise ConfigError(f"device: this benchmark is of the CPU, not of {device}")
    deadline = Deadline(options.budget_s)
    peer = None if options.peer is None else load_class(options.peer)
    equal = check_small(device, steps=options.check_steps, peer=peer, seed=options.seed)
    report.note(f"equal to the specification: {'; '.join(equal)}")
    _run_passes(options, report, device, deadline, peer)
    with compute_threads(1):
        _run_layer_steps(options, report, device, deadline, peer)
        _run_model_steps(options, report, device, deadline)
    report.print_goals()


def _run_passes(
    options: argparse.Namespace,
    report: Report,
    device: torch.device,
    deadline: Deadline,
    peer: type[nn.Module] | None,
) -> None:
    batch = max(1, options.tokens // options.length)
    # `measure_cases` reads it: everything here is float32.
    options = argparse.Namespace(**vars(options), dtype="float32")
    for density in options.densities:
        problem = _problem(options, device, batch, options.length, density)
        rows = measure_cases(
            options,
            device,
            deadline,
            problem,
            _pass_makers(problem, peer),
            checks=True,
            kinds=("infer",),
        )
        for row in rows:
            report.add(part="pass", length=options.length, batch=batch, density=density, **row)
        cells = [
            (
                f"{options.length:,}",
                f"{density:g}",
                row["case"],
                row["failure"] or number(row["infer"]["median_ms"]),
                number(row["infer"]["iqr_ms"]),
            )
            for row in rows
        ]
        report.table(("L", "density", "pass", "infer ms", "± IQR"), cells)


def _pass_makers(problem: Problem, peer: type[nn.Module] | None) -> dict[str, Callable[[], Case]]:
    makers: dict[str, Callable[[], Case]] = {
        name: partial(problem.ours, name) for name in ("eager", "dense")
    }
    if peer is not None:
        makers["reference"] = partial(problem.file_peer, peer)
    return makers


def _problem(
    options: argparse.Namespace, device: torch.device, batch: int, steps: int, density: float
) -> Problem:
    return Problem(
        layer_sizes(options),
        batch=batch,
        steps=steps,
        density=density,
        device=device,
        rounded=False,
        compiles=False,
        seed=options.seed,
    )


def _run_layer_steps(
    options: argparse.Namespace,
    report: Report,
    device: torch.device,
    deadline: Deadline,
    peer: type[nn.Module] | None,
) -> None:
    """One layer's step: all of a batch skipped, all activated, and the others'."""
    problem = _problem(options, device, 1, options.history, 0.5)
    sparse, dense = problem.ours("eager").module, problem.ours("dense").module
    marked = problem.x.detach()[0]
    on, off = (marked[problem.active[0] == runs] for runs in (True, False))
    for batch in options.step_batches:
        steps: dict[str, Step] = {
            name: _layer_step(module.layer, rows, batch)  # type: ignore[union-attr]
            for name, module, rows in (
                ("skipped", sparse, off),
                ("activated", sparse, on),
                ("dense twin", dense, on),
            )
        }
        if peer is not None and batch == 1:
            # It keeps no state: a step of it runs over all steps so far.
            steps["reference, over its history"] = problem.file_peer(peer).infer_step
        found = _time(options, steps, device, deadline)
        _tabulate(report, "step of a layer", batch, found, each=1)
        skipped, activated = found["skipped"].median, found["activated"].median
        ratio = skipped / activated if skipped is not None and activated else None
        what = f"batch {batch}: a skipped step over an activated one"
        report.goal(what, ratio, SKIPPED_GOAL, at_least=False)


def _layer_step(layer: SMALayer, rows: torch.Tensor, batch: int) -> Step:
    layer.eval()
    window = layer.config.pool[0].window  # type: ignore[attr-defined]
    state = layer.init_state(batch, rows.device, rows.dtype)
    position = torch.zeros(batch, dtype=torch.int64)
    pieces = [row.expand(batch, -1).contiguous() for row in rows[:_EVENTS]]
    taken = 0

    @torch.inference_mode()
    def advance() -> None:
        nonlocal taken
        layer.step(pieces[taken % len(pieces)], position, state)
        position.add_(1)
        taken += 1

    for _ in range(window + 1):  # the window is full from here on
        advance()
    return advance


def _run_model_steps(
    options: argparse.Namespace, report: Report, device: torch.device, deadline: Deadline
) -> None:
    """Events a second of whole models on one core."""
    config = stream_config(width=options.model_width, layers=options.model_layers)
    model = routed_model(config, device, seed=options.seed)
    check_stream("eager", model, EagerStep)
    twin = build_model(dense_twin(config)).eval()
    attention = TransformerConfig(
        inputs=InputConfig(numeric=CHANNELS),
        head=HeadConfig(kind="forecast", outputs=CHANNELS),
        width=options.model_width,
        layers=options.model_layers,
        hidden_width=4 * options.model_width,
        window=64,
    )
    models: dict[str, SequenceModel] = {
        "ours": model,
        "dense twin": twin,
        "transformer": build_model(attention).eval(),
    }
    rates: list[float | None] = []
    for batch in options.model_batches:
        if deadline.passed:
            report.note(f"batch {batch:,}: skipped, no time left")
            continue
        steps = {
            name: _model_step(each, batch, 1.0 if name == "dense twin" else options.model_density)
            for name, each in models.items()
        }
        found = _time(options, steps, device, deadline)
        name = f"step of {options.model_layers} layers, width {options.model_width}"
        rates.append(_tabulate(report, name, batch, found, each=_EVENTS)["ours"])
    best = max((rate for rate in rates if rate is not None), default=None)
    report.goal("events a second on one core", best, EVENTS_GOAL, at_least=True)


def _model_step(model: SequenceModel, batch: int, density: float) -> Step:
    step = EagerStep(model, model.init_state(batch))
    device = model.head.weight.device
    for event in draw_events(65, batch, density, device, seed=1):
        step(event)
    events = draw_events(_EVENTS, batch, density, device, seed=2)

    def advance() -> None:
        # All of them: those that run and those that are skipped weigh in by their share.
        for event in events:
            step(event)

    return advance


def _time(
    options: argparse.Namespace,
    steps: dict[str, Step],
    device: torch.device,
    deadline: Deadline,
) -> dict[str, Timings]:
    return time_in_turn(
        steps,
        device,
        rounds=options.rounds,
        iterations=options.iterations,
        warmup=options.warmup,
        deadline=deadline,
    )


def _tabulate(
    report: Report, part: str, batch: int, found: dict[str, Timings], *, each: int
) -> dict[str, float | None]:
    """Print steps of which `each` make a repetition; returns the events a second."""
    rates: dict[str, float | None] = {}
    rows = []
    for name, timings in found.items():
        median, spread = timings.median, timings.spread
        rates[name] = None if median is None else 1000 * batch * each / median
        report.add(
            part=part,
            case=name,
            batch=batch,
            steps_each=each,
            events_per_s=rates[name],
            step=timings.as_json(),
        )
        cells = timings.failure or number(None if median is None else median / each)
        spread = None if spread is None else spread / each
        rows.append((name, f"{batch:,}", cells, number(spread), number(rates[name])))
    report.table((part, "batch", "ms a step", "± IQR", "events/s"), rows)
    return rates
