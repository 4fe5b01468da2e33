"""``model``: whole models in training and inference: tokens a second and peak memory."""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from sma_core.bench.cases import VARIANTS, compiling
from sma_core.bench.equality import (
    TOLERANCES,
    MismatchError,
    check_small,
    relative_difference,
)
from sma_core.bench.options import (
    add_compile_options,
    add_layer_options,
    add_timing_options,
    layer_sizes,
    names_in,
    numbers_in,
    positive,
)
from sma_core.bench.peers import BLOCKS, load_class
from sma_core.bench.stacks import ModelCase, ModelProblem
from sma_core.bench.tables import Report, mebibytes, number
from sma_core.bench.timing import (
    Deadline,
    Timings,
    failure_text,
    peak_bytes,
    seconds_of,
    time_in_turn,
)

TASKS = {"classification": "sequence_classification", "forecast": "forecast"}
LONG_GOAL = 1.3
COLUMNS = (
    *("task", "L", "model", "train tokens/s", "infer tokens/s", "train MiB", "infer MiB"),
    *("first step s", "ran"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``model``."""
    add_layer_options(parser)
    add_timing_options(parser)
    add_compile_options(parser)
    parser.set_defaults(iterations=5, warmup=2)
    parser.add_argument("--layers", type=positive, default=6)
    parser.add_argument("--tasks", type=names_in(TASKS), default=list(TASKS))
    parser.add_argument(
        "--lengths", type=numbers_in(int), default=[2048, 8192, 32768], metavar="L,L,..."
    )
    parser.add_argument("--tokens", type=positive, default=65_536, help="of a step, B x L")
    parser.add_argument("--density", type=float, default=0.1, help="share of steps that run")
    parser.add_argument(
        "--variants", type=names_in(VARIANTS), default=["capacity", "capacity_no_graphs", "dense"]
    )
    parser.add_argument(
        "--blocks",
        type=names_in((*BLOCKS, "baseline")),
        default=["transformer", "sliding"],
        help="stacks to compare with; baseline: the library's own Transformer",
    )
    parser.add_argument("--peer", metavar="FILE:CLASS", help="reference layer")
    parser.add_argument("--long", type=int, default=0, help="length of one long sequence")
    parser.add_argument("--check-steps", type=positive, default=300)


def run(options: argparse.Namespace, report: Report, device: torch.device) -> None:
    """Check, time, print.

    Raises
    ------
    MismatchError
        A model of ours is wrong; nothing of its length is timed.
    """
    deadline = Deadline(options.budget_s)
    peer = None if options.peer is None else load_class(options.peer)
    equal = check_small(device, steps=options.check_steps, peer=peer, seed=options.seed)
    report.note(f"equal to the specification: {'; '.join(equal)}")
    for task in options.tasks:
        for length in options.lengths:
            _run_group(options, report, device, deadline, task, length, peer)
        if options.long:
            _run_group(options, report, device, deadline, task, options.long, None)
            _judge_long(options, report, task)
    report.print_goals()


def _run_group(
    options: argparse.Namespace,
    report: Report,
    device: torch.device,
    deadline: Deadline,
    task: str,
    length: int,
    peer: type[nn.Module] | None,
) -> None:
    """Everything of one task at one length: checked together, timed in turn."""
    if deadline.passed:
        report.note(f"{task}, L {length:,}: skipped, no time left")
        return
    batch, long = max(1, options.tokens // length), length == options.long
    with compiling():
        try:
            problem = ModelProblem(
                layer_sizes(options),
                layers=options.layers,
                kind=TASKS[task],  # type: ignore[arg-type]
                batch=batch,
                steps=length,
                density=options.density,
                device=device,
                rounded=options.dtype == "bfloat16",
                compiles=not options.compile_off,
                seed=options.seed,
            )
        except Exception as error:  # out of memory, for one: the others go on
            report.note(f"{task}, L {length:,}: {failure_text(error)}")
            return
        variants = options.variants[:1] if long else options.variants
        makers: dict[str, Callable[[], ModelCase]] = {n: partial(problem.ours, n) for n in variants}
        if not long:
            if peer is not None:
                makers["reference"] = partial(problem.file_peer, peer)
            for name in options.blocks:
                baseline = name == "baseline"
                makers[name] = problem.baseline if baseline else partial(problem.peer, name)
        rows = _measure(options, device, deadline, problem, makers, checks=not long)
    cells = []
    for row in rows:
        for kind in ("train", "infer"):
            median = row[kind]["median_ms"]
            row[f"{kind}_tokens_per_s"] = None if not median else 1000 * batch * length / median
        report.add(task=task, length=length, batch=batch, tokens=batch * length, **row)
        where = (task, f"{length:,}", row["case"])
        if row["failure"]:
            cells.append((*where, row["failure"], *[""] * (len(COLUMNS) - 4)))
            continue
        cells.append(
            (
                *where,
                *(number(row[f"{kind}_tokens_per_s"]) for kind in ("train", "infer")),
                *(mebibytes(row[f"{kind}_bytes"]) for kind in ("train", "infer")),
                number(row["first_s"]),
                "-" if row["ran"] is None else f"{row['ran']:.4f}",
            )
        )
    report.table(COLUMNS, cells)


def _measure(
    options: argparse.Namespace,
    device: torch.device,
    deadline: Deadline,
    problem: ModelProblem,
    makers: dict[str, Callable[[], ModelCase]],
    *,
    checks: bool,
) -> list[dict[str, Any]]:
    empty = Timings().as_json()
    rows: dict[str, dict[str, Any]] = {
        name: {
            "case": name,
            "failure": "",
            "first_s": None,
            "ran": None,
            "train": empty,
            "infer": empty,
            "train_bytes": None,
            "infer_bytes": None,
        }
        for name in makers
    }
    cases: dict[str, ModelCase] = {}
    truth = problem.truth() if checks else None
    for name, make in makers.items():
        row = rows[name]
        if deadline.passed:
            row["failure"] = "skipped: no time left"
            continue
        try:
            case = make()
            row["first_s"] = seconds_of(case.train_step, device)
            for _ in range(2):  # CUDA graphs warm up, record and only then replay
                case.predict()
            prediction = case.predict().clone()
            ran = case.ran()
            if ran is not None:
                row["ran"] = ran[0]
                if ran[1]:
                    raise RuntimeError(f"{ran[1]} steps found no slot")
            if truth is not None and name not in ("dense", "baseline", *BLOCKS):
                _assert_close(f"{name} at {problem.steps} steps", prediction, truth)
            case.release()
            cases[name] = case
        except MismatchError:
            raise
        except Exception as error:
            row["failure"] = failure_text(error)
    for kind in ("train", "infer"):
        for case in cases.values():
            case.module.train(kind == "train")
        steps = {name: getattr(case, f"{kind}_step") for name, case in cases.items()}
        timings = time_in_turn(
            steps,
            device,
            rounds=options.rounds,
            iterations=options.iterations,
            warmup=options.warmup,
            deadline=deadline,
        )
        for name, case in cases.items():
            rows[name][kind] = timings[name].as_json()
            rows[name]["failure"] = rows[name]["failure"] or timings[name].failure
            case.release()
            if not timings[name].failure and not case.graphs:
                rows[name][f"{kind}_bytes"] = peak_bytes(steps[name], device)
            case.release()
    return list(rows.values())


def _assert_close(what: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    # Six layers round six times; their errors add up like a random walk at worst.
    allowed = 3 * TOLERANCES["bfloat16"].output
    difference = relative_difference(found, expected)
    if not difference <= allowed:
        raise MismatchError(
            f"{what} against packed, eager, float32: the prediction differs by {difference:.3g}, "
            f"allowed is {allowed:g}; nothing is timed"
        )


def _judge_long(options: argparse.Namespace, report: Report, task: str) -> None:
    ours = options.variants[0]
    rates = {
        r["length"]: r for r in report.content["results"] if r["task"] == task and r["case"] == ours
    }
    base = 8_192 if 8_192 in rates else options.lengths[-1]
    for kind in ("train", "infer"):
        short, long = (rates.get(n, {}).get(f"{kind}_tokens_per_s") for n in (base, options.long))
        ratio = short / long if short and long else None
        what = f"{task}, {kind}: time per token at {options.long:,} over that at {base:,}"
        report.goal(what, ratio, LONG_GOAL, at_least=False)
