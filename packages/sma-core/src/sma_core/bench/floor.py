"""``floor``: one layer's time over the least that its operations and bytes take here."""

import argparse
from functools import partial

import torch

from sma_core.bench.cases import VARIANTS, Problem, compiling
from sma_core.bench.ceilings import (
    floor_seconds,
    inference_phases,
    measure_ceilings,
    training_phases,
)
from sma_core.bench.equality import check_small
from sma_core.bench.measure import measure_cases
from sma_core.bench.options import (
    add_compile_options,
    add_layer_options,
    add_timing_options,
    layer_sizes,
    numbers_in,
    positive,
)
from sma_core.bench.tables import Report, number
from sma_core.bench.timing import Deadline

GOAL_DENSITY, GOAL = 0.1, 2.5
COLUMNS = (
    *("L", "density", "case", "train ms", "floor ms", "train/floor"),
    *("infer ms", "floor ms", "infer/floor"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``floor``."""
    add_layer_options(parser)
    add_timing_options(parser)
    add_compile_options(parser)
    parser.add_argument("--lengths", type=numbers_in(int), default=[8192], metavar="L,L,...")
    parser.add_argument(
        "--densities", type=numbers_in(float), default=[0.1, 0.0, 0.3, 1.0], metavar="P,P,..."
    )
    parser.add_argument("--tokens", type=positive, default=65_536, help="of a step, B x L")
    parser.add_argument("--variant", choices=tuple(VARIANTS), default="capacity")
    parser.add_argument("--copy-mib", type=positive, default=2048, help="size of the copy")
    parser.add_argument("--matrix", type=positive, default=8192, help="rows of the matrices")
    parser.add_argument("--check-steps", type=positive, default=300)


def run(options: argparse.Namespace, report: Report, device: torch.device) -> None:
    """Measure the ceilings, then the layer, and print one over the other."""
    deadline = Deadline(options.budget_s)
    check_small(device, steps=options.check_steps, seed=options.seed)
    ceilings = measure_ceilings(
        device, copy_mib=options.copy_mib, matrix=options.matrix, deadline=deadline
    )
    report.content["ceilings"] = ceilings._asdict()
    report.note(
        f"ceilings: {ceilings.flops / 1e12:.3g} TFLOP/s in bfloat16 products of {options.matrix:,} "
        f"rows, {ceilings.bytes / 1e9:,.0f} GB/s in a copy of {options.copy_mib:,} MiB"
    )
    sizes = layer_sizes(options)
    for length in options.lengths:
        batch = max(1, options.tokens // length)
        for density in options.densities:
            if deadline.passed:
                report.note(f"L {length:,}, density {density:g}: skipped, no time left")
                continue
            with compiling():
                problem = Problem(
                    sizes,
                    batch=batch,
                    steps=length,
                    density=density,
                    device=device,
                    rounded=options.dtype == "bfloat16",
                    compiles=not options.compile_off,
                    seed=options.seed,
                )
                makers = {options.variant: partial(problem.ours, options.variant)}
                (row,) = measure_cases(options, device, deadline, problem, makers, checks=True)
            cells = [f"{length:,}", f"{density:g}", options.variant]
            for kind, phases_of in (("train", training_phases), ("infer", inference_phases)):
                phases = phases_of(sizes, tokens=batch * length, steps=length, density=density)
                floor_ms = 1000 * floor_seconds(phases, ceilings)
                median = row[kind]["median_ms"]
                ratio = None if median is None else median / floor_ms
                row[f"{kind}_phases"] = [phase._asdict() for phase in phases]
                row[f"{kind}_floor_ms"], row[f"{kind}_over_floor"] = floor_ms, ratio
                cells += [number(median), number(floor_ms), number(ratio)]
                if density == GOAL_DENSITY:
                    what = f"L {length:,}, {kind}: time over floor at density {density:g}"
                    report.goal(what, ratio, GOAL, at_least=False)
            report.add(length=length, density=density, batch=batch, **row)
            if row["failure"]:
                report.note(f"L {length:,}, density {density:g}: {row['failure']}")
            report.table(COLUMNS, [cells])
    report.print_goals()
