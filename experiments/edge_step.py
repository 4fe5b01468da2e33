"""A small device's step: ONNX Runtime against eager torch, one event at a time, on one core.

From the root of the workspace:

    uv run python -m experiments.edge_step --json edge.json

exports a model of 4 layers of width 64, once with every sub-module running at every step and once
with none, and times both runtimes in turns of 100 steps on one sequence. Printed are the median
times of a step and their ratio. Nothing is timed before the working memory of every layer is full.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from experiments.onnx_stepper import OnnxStepper

from sma_core import (
    AlwaysConfig,
    GatedAttentionConfig,
    HeadConfig,
    InputConfig,
    Inputs,
    ModelConfig,
    NeverConfig,
    PolicyConfig,
    SwiGLUConfig,
    build_model,
)
from sma_core.export import export_onnx

CHANNELS, WINDOW, TURN = 8, 64, 100
POLICIES: dict[str, PolicyConfig] = {"every step runs": AlwaysConfig(), "none runs": NeverConfig()}


def measure(policy: PolicyConfig, turns: int, folder: Path) -> dict[str, Any]:
    """Export, warm up, and time both in turns; times in microseconds."""
    torch.manual_seed(0)
    config = ModelConfig(
        inputs=InputConfig(numeric=CHANNELS),
        head=HeadConfig(kind="forecast", outputs=CHANNELS),
        width=64,
        layers=4,
        pool=(GatedAttentionConfig(window=WINDOW), SwiGLUConfig()),
        policy=policy,
    )
    model = build_model(config).eval()
    path = folder / f"{policy.kind}.onnx"
    manifest = export_onnx(model, path, graph="step")
    stepper, state = OnnxStepper(path), model.init_state(1)
    events = np.random.default_rng(0).standard_normal((TURN, 1, CHANNELS), dtype=np.float32)
    inputs = [Inputs(torch.from_numpy(event)[:, None]) for event in events]
    runs: dict[str, Callable[[int], Any]] = {
        "onnxruntime": lambda i: stepper.step(numeric=events[i]),
        "torch": lambda i: model.step(inputs[i], state),
    }
    times: dict[str, list[int]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name, run in runs.items():
            for i in range(TURN):
                start = time.perf_counter_ns()
                run(i)
                taken = time.perf_counter_ns() - start
                if turn:  # the first turn fills the windows
                    times[name].append(taken)
    medians = {name: median(taken) / 1e3 for name, taken in times.items()}
    return {
        "median_us": medians,
        "p99_us": {name: float(np.percentile(t, 99)) / 1e3 for name, t in times.items()},
        "ratio": medians["onnxruntime"] / medians["torch"],
        "file_bytes": path.stat().st_size,
        "state_bytes": state.nbytes,
        "relative_difference": manifest["verification"]["relative_difference"],
    }


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--turns", type=int, default=50, help="timed turns of 100 steps")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):  # Linux: both runtimes on the same core
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with TemporaryDirectory() as folder:
        found = {
            name: measure(policy, arguments.turns, Path(folder))
            for name, policy in POLICIES.items()
        }
    for name, figures in found.items():
        ours, eager = (figures["median_us"][runtime] for runtime in ("onnxruntime", "torch"))
        print(
            f"{name:16} ONNX Runtime {ours:7.0f} us   torch {eager:7.0f} us   "
            f"ratio {figures['ratio']:.2f}"
        )
    if arguments.json:
        machine = {"processor": platform.processor() or platform.machine(), "cores": 1}
        arguments.json.write_text(json.dumps({"machine": machine, **found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
