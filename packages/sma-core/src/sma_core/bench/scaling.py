"""``scaling``: training on 1 to all GPUs: tokens a second, peak memory, imbalance of routing."""

import argparse
import json
import socket
import tempfile
from pathlib import Path
from typing import Any, get_args

import torch
from torch import multiprocessing

from sma_core.bench.equality import check_small
from sma_core.bench.options import (
    add_compile_options,
    add_layer_options,
    add_timing_options,
    names_in,
    numbers_in,
    positive,
)
from sma_core.bench.scaling_worker import CASES, measure
from sma_core.bench.tables import Report, mebibytes, number
from sma_core.bench.timing import Deadline, failure_text
from sma_core.errors import ConfigError
from sma_core.parallel import Sharding

MODES = ("weak", "strong")
COLUMNS = (
    *("scaling", "case", "processes", "tokens/s", "efficiency", "step ms", "± IQR", "peak MiB"),
    *("rows: most/mean", "alone: slowest/mean"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``scaling``."""
    add_layer_options(parser)
    add_timing_options(parser)
    add_compile_options(parser)
    parser.add_argument("--check-steps", type=positive, default=300)
    parser.add_argument("--layers", type=positive, default=6)
    parser.add_argument("--length", type=positive, default=8192, help="steps of a sequence")
    parser.add_argument(
        "--batch",
        type=positive,
        default=8,
        help="sequences: of each process in weak scaling, of all together in strong scaling",
    )
    parser.add_argument(
        "--density", type=float, default=0.1, help="share of steps that run, on average"
    )
    parser.add_argument(
        "--spread",
        type=float,
        default=1.0,
        help="the share of a sequence is uniform in density x (1 - spread, 1 + spread)",
    )
    parser.add_argument("--modes", type=names_in(MODES), default=list(MODES))
    parser.add_argument(
        "--cases",
        type=names_in(CASES),
        default=["packed", "capacity", "capacity_graphs", "transformer"],
        help=f"of {', '.join(CASES)}",
    )
    parser.add_argument("--sharding", choices=get_args(Sharding), default="ddp")
    parser.add_argument(
        "--processes",
        type=numbers_in(int),
        metavar="N,N,...",
        help="default: 1, 2, 4, ... and all GPUs",
    )


def run(options: argparse.Namespace, report: Report, device: torch.device) -> None:
    """Start groups of processes, one after another, and print what they measured.

    Raises
    ------
    ConfigError
        An option is wrong.
    """
    if not 0.0 <= options.spread <= 1.0 or not 0.0 <= options.density * (1 + options.spread) <= 1.0:
        raise ConfigError("spread: must lie in 0..1, and density x (1 + spread) too")
    counts = options.processes or _powers(torch.cuda.device_count() or 1)
    if device.type == "cuda" and max(counts) > torch.cuda.device_count():
        raise ConfigError(f"processes: there are {torch.cuda.device_count()} GPUs")
    deadline = Deadline(options.budget_s)
    check_small(device, steps=options.check_steps, seed=options.seed)
    alone: dict[str, dict[str, Any]] = {}  # of one process, which both modes begin with
    for mode in options.modes:
        for case in options.cases:
            rows = []
            for count in counts:
                if mode == "strong" and options.batch % count:
                    report.note(f"strong, {count} processes: skipped, batch is no multiple")
                    continue
                if deadline.passed:
                    report.note(f"{mode}, {case}, {count} processes: skipped, no time left")
                    continue
                if count == 1:
                    if case not in alone:
                        alone[case] = _start(options, device, mode, case, count)
                    found = dict(alone[case])
                else:
                    found = _start(options, device, mode, case, count)
                rate = found.get("tokens_per_s")
                base = alone.get(case, {}).get("tokens_per_s")
                found["efficiency"] = rate / (count * base) if rate and base else None
                report.add(scaling=mode, case=case, processes=count, **found)
                rows.append(_cells(mode, case, count, found))
            report.table(COLUMNS, rows)


def _start(
    options: argparse.Namespace, device: torch.device, mode: str, case: str, count: int
) -> dict[str, Any]:
    """Measure one case in `count` fresh processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    batch = options.batch if mode == "weak" else options.batch // count
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        try:
            multiprocessing.start_processes(  # type: ignore[attr-defined]
                measure,
                args=(options, case, batch, count, port, device.type, path),
                nprocs=count,
                start_method="spawn",
            )
        except Exception as error:  # out of memory, for one: the others go on
            return {"failure": failure_text(error)}
        return json.loads(path.read_text(encoding="utf-8"))


def _cells(mode: str, case: str, count: int, found: dict[str, Any]) -> tuple[str, ...]:
    where = (mode, case, str(count))
    if "failure" in found:
        return (*where, found["failure"], *[""] * (len(COLUMNS) - 4))
    return (
        *where,
        number(found["tokens_per_s"]),
        number(found["efficiency"]),
        number(found["step"]["median_ms"]),
        number(found["step"]["iqr_ms"]),
        mebibytes(found["peak_bytes"]),
        number(found["rows_imbalance"]),
        number(found["time_imbalance"]),
    )


def _powers(limit: int) -> list[int]:
    """Give 1, 2, 4, ... below the limit, and the limit."""
    found = [1]
    while 2 * found[-1] < limit:
        found.append(2 * found[-1])
    return found if limit == 1 else [*found, limit]
