"""``layer``: one layer against its peers, forward and backward, and in inference."""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from sma_core.bench.cases import VARIANTS, Case, Problem, compiling
from sma_core.bench.equality import check_small
from sma_core.bench.first_step import GOALS, measure_first_step
from sma_core.bench.goals import judge_layer
from sma_core.bench.measure import measure_cases
from sma_core.bench.options import (
    add_compile_options,
    add_layer_options,
    add_timing_options,
    layer_sizes,
    names_in,
    numbers_in,
)
from sma_core.bench.peers import BLOCKS, has_linear_attention, load_class
from sma_core.bench.tables import Report, mebibytes, number
from sma_core.bench.timing import Deadline, failure_text

COLUMNS = (
    *("L", "density", "case", "train ms", "± IQR", "infer ms", "± IQR"),
    *("train MiB", "infer MiB", "first step s", "ran"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``layer``."""
    add_layer_options(parser)
    add_timing_options(parser)
    add_compile_options(parser)
    parser.add_argument(
        "--lengths", type=numbers_in(int), default=[2048, 8192, 32768], metavar="L,L,..."
    )
    parser.add_argument(
        "--densities", type=numbers_in(float), default=[0.0, 0.1, 0.3, 1.0], metavar="P,P,..."
    )
    parser.add_argument("--tokens", type=int, default=65_536, help="tokens of a step, B x L")
    parser.add_argument(
        "--goal-density", type=float, default=0.1, help="density at which peers are compared"
    )
    parser.add_argument(
        "--variants",
        type=names_in(VARIANTS),
        default=list(VARIANTS),
        help=f"ways to run ours at the goal's density, of {', '.join(VARIANTS)}",
    )
    parser.add_argument(
        "--sweep-variants",
        type=names_in(VARIANTS),
        default=["capacity"],
        help="ways to run ours at the other densities",
    )
    installed = [name for name in BLOCKS if name not in ("gla", "retnet")]
    installed += ["gla", "retnet"] if has_linear_attention() else []
    parser.add_argument(
        "--blocks",
        type=names_in(BLOCKS),
        default=installed,
        help=f"blocks to compare with, of {', '.join(BLOCKS)}; none: an empty word",
    )
    parser.add_argument(
        "--peer", metavar="FILE:CLASS", help="reference layer, with the published interface"
    )
    parser.add_argument("--long", type=int, default=0, help="length of one long sequence")
    parser.add_argument(
        "--first-step", action="store_true", help="time a fresh process up to its first step"
    )
    parser.add_argument("--check-steps", type=int, default=300, help="length of the small check")


def run(options: argparse.Namespace, report: Report, device: torch.device) -> None:
    """Check, time, print.

    Raises
    ------
    MismatchError
        A layer is wrong; nothing of its group is timed.
    ConfigError
        An option is wrong.
    """
    deadline = Deadline(options.budget_s)
    peer = None if options.peer is None else load_class(options.peer)
    equal = check_small(device, steps=options.check_steps, peer=peer, seed=options.seed)
    report.note(f"equal to the specification: {'; '.join(equal)}")
    if options.first_step:
        _run_first_step(options, report, device)
    densities = [options.goal_density]
    densities += sorted(set(options.densities) - {options.goal_density}, reverse=True)
    # What the goals are about first: time may run out.
    for density in densities:
        for length in options.lengths:
            _run_group(options, report, device, deadline, length, density, peer)
    if options.long:
        _run_group(options, report, device, deadline, options.long, options.goal_density, None)
    ours = options.variants[0] if options.variants else "capacity"
    judge_layer(report, ours=ours, density=options.goal_density, long=options.long)
    report.print_goals()


def _run_first_step(options: argparse.Namespace, report: Report, device: torch.device) -> None:
    """Time fresh processes, eager and, unless that is off, compiled."""
    rows = []
    for name, limit in GOALS.items():
        if name == "compiled" and options.compile_off:
            continue
        found: dict[str, float] = {}
        failure = ""
        try:
            found = measure_first_step(
                layer_sizes(options),
                tokens=options.tokens,
                length=options.lengths[0],
                device=device,
                compiles=name == "compiled",
            )
        except RuntimeError as error:
            failure = failure_text(error)
        report.content.setdefault("first_step", {})[name] = found or {"failure": failure}
        seconds = found.get("first_s")
        rows.append((name, failure or number(found.get("import_s")), number(seconds)))
        report.goal(f"first train step, {name}, seconds", seconds, limit, at_least=False)
    report.table(("first step", "import s", "step s"), rows)


def _run_group(
    options: argparse.Namespace,
    report: Report,
    device: torch.device,
    deadline: Deadline,
    length: int,
    density: float,
    peer: type[nn.Module] | None,
) -> None:
    """Everything at one length and density: checked together, timed in turn."""
    if deadline.passed:
        report.note(f"L {length:,}, density {density:g}: skipped, no time left")
        return
    batch = max(1, options.tokens // length)
    goal, long = density == options.goal_density, length == options.long
    variants = options.variants if goal and not long else options.sweep_variants
    with compiling():
        try:
            problem = Problem(
                layer_sizes(options),
                batch=batch,
                steps=length,
                density=density,
                device=device,
                rounded=options.dtype == "bfloat16",
                compiles=not options.compile_off,
                seed=options.seed,
            )
        except Exception as error:  # out of memory, for one: the other groups go on
            report.note(f"L {length:,}, density {density:g}: {failure_text(error)}")
            return
        makers: dict[str, Callable[[], Case]] = {n: partial(problem.ours, n) for n in variants}
        if goal and not long:
            if peer is not None:
                makers["reference"] = partial(problem.file_peer, peer)
            makers |= {n: partial(problem.block_peer, n) for n in options.blocks}
        rows = measure_cases(options, device, deadline, problem, makers, checks=not long)
    for row in rows:
        report.add(length=length, density=density, batch=batch, tokens=batch * length, **row)
    report.table(COLUMNS, [_cells(length, density, row) for row in rows])


def _cells(length: int, density: float, row: dict[str, Any]) -> tuple[str, ...]:
    where = (f"{length:,}", f"{density:g}", row["case"])
    if row["failure"]:
        return (*where, row["failure"], *[""] * (len(COLUMNS) - 4))
    return (
        *where,
        *(number(row[kind][key]) for kind in ("train", "infer") for key in ("median_ms", "iqr_ms")),
        *(mebibytes(row[f"{kind}_bytes"]) for kind in ("train", "infer")),
        number(row["first_s"]),
        "-" if row["ran"] is None else f"{row['ran']:.4f}",
    )
