"""Cases of one problem: checked together, then timed in turn, with their memory."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from sma_core.bench.cases import Case, Kind, Problem
from sma_core.bench.equality import MismatchError, Outcome, assert_equal
from sma_core.bench.timing import (
    Deadline,
    Timings,
    failure_text,
    peak_bytes,
    seconds_of,
    time_in_turn,
)


def measure_cases(
    options: argparse.Namespace,
    device: torch.device,
    deadline: Deadline,
    problem: Problem,
    makers: Mapping[str, Callable[[], Case]],
    *,
    checks: bool,
    kinds: Sequence[Kind] = ("train", "infer"),
) -> list[dict[str, Any]]:
    """Make cases, check them, then time them in turn.

    Parameters
    ----------
    options
        Those of `options.add_timing_options`, and ``dtype``.
    device
        Where all runs.
    deadline
        After it nothing new begins.
    problem
        What the cases are of.
    makers
        By name, what makes each case.
    checks
        Whether to compare each with the plain path in float32.
    kinds
        What to time.

    Returns
    -------
    list of dict
        Of each case: ``case``, ``failure`` (empty: none), ``train`` and ``infer`` (see
        `Timings.as_json`), their peaks ``train_bytes`` and ``infer_bytes``, ``first_s``, seconds of
        the first step, and ``ran``, the share of steps that ran.

    Raises
    ------
    MismatchError
        A case is wrong; nothing was timed.
    """
    cases: dict[str, Case] = {}
    truths: dict[str, Outcome] = {}
    rows: dict[str, dict[str, Any]] = {
        name: {"case": name, "first_s": None, "ran": None, "failure": ""} for name in makers
    }
    for name, make in makers.items():
        if deadline.passed:
            rows[name]["failure"] = "skipped: no time left"
            continue
        try:
            case = make()
            rows[name]["first_s"] = seconds_of(case.train_step, device)
            if checks and case.truth:
                if case.truth not in truths:
                    truths[case.truth] = problem.truth(case.truth)
                what = f"{name} at {problem.steps} steps against packed, eager, float32"
                row = "bfloat16" if options.dtype == "bfloat16" else "peer, float32"
                assert_equal(what, case.outcome(), truths[case.truth], row)
            # Graphs are recorded here, before the next case is compiled: torch 2.11 may then run
            # this one, whose code is the same, as it does uncompiled.
            for kind in kinds:
                case.module.train(kind == "train")
                getattr(case, f"{kind}_step")()
                step = partial(case.compute, kind)  # a graph's pool would hide the peak
                rows[name][f"{kind}_bytes"] = peak_bytes(step, device)
                case.release()
            cases[name] = case
        except MismatchError:
            raise
        except Exception as error:
            rows[name]["failure"] = failure_text(error)
    truths.clear()
    for kind in kinds:
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
    for name, case in cases.items():
        try:
            rows[name]["ran"] = case.density()
        except Exception as error:
            rows[name]["failure"] = rows[name]["failure"] or failure_text(error)
    empty = Timings().as_json()
    for row in rows.values():
        for kind in ("train", "infer"):
            row.setdefault(kind, empty)
            row.setdefault(f"{kind}_bytes", None)
    return list(rows.values())
