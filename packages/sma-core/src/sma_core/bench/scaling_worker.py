"""One process of ``scaling``: train steps with the exchange of gradients, and without it."""

import argparse
import json
import os
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from sma_core.bench.options import layer_sizes
from sma_core.bench.routing import draw_input, fix_model_routing
from sma_core.bench.timing import Timings, time_round
from sma_core.compiled import compiling
from sma_core.config import (
    ArchitectureConfig,
    HeadConfig,
    InputConfig,
    ModelConfig,
    TransformerConfig,
)
from sma_core.inputs import Inputs
from sma_core.model import SequenceModel, SMAModel, build_model
from sma_core.parallel import Parallel, Spread, join
from sma_core.training_config import Compile

CHANNELS = 8
# What trains: model, and what of it is compiled.
CASES: dict[str, tuple[str, Compile]] = {
    "packed": ("packed", "none"),
    "capacity": ("capacity", "layers"),
    "capacity_graphs": ("capacity", "model"),
    "transformer": ("transformer", "layers"),
    "transformer_graphs": ("transformer", "model"),
}
_FIXED_ON = 4096  # steps of one sequence that the router is set by


def measure(
    local_rank: int,
    options: argparse.Namespace,
    case: str,
    batch: int,
    size: int,
    port: int,
    device: str,
    path: Path,
) -> None:
    """Take part, measure; rank 0 writes what all found.

    Parameters
    ----------
    local_rank
        Number of this process.
    options
        Of the command line.
    case
        Of `CASES`. ``packed``: eager, work follows what runs. ``capacity``: compiled layers with as
        many slots as the busiest sequence needs, so that all processes do the same work.
        ``transformer``: the library's own, compiled layers. With ``_graphs`` the whole model is
        compiled, and recorded.
    batch
        Sequences of each process.
    size, port
        Of the group.
    device
        ``cuda`` or ``cpu``.
    path
        JSON file to write.
    """
    os.environ |= {"RANK": str(local_rank), "LOCAL_RANK": str(local_rank)}
    os.environ |= {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if options.threads:
        torch.set_num_threads(options.threads)
    how = "none" if options.compile_off else CASES[case][1]
    with join(options.sharding, device=device) as parallel, compiling(how):
        found = _measure(options, case, batch, parallel)
        if parallel.main:
            path.write_text(json.dumps(found), encoding="utf-8")


def _measure(
    options: argparse.Namespace, case: str, batch: int, parallel: Parallel
) -> dict[str, Any]:
    device = parallel.device
    generator = torch.Generator().manual_seed(options.seed)
    active = _draw(options, batch * parallel.size, generator)
    numeric = draw_input(active, CHANNELS, generator=generator)
    kind, how = CASES[case]
    model = _model(options, kind, numeric[:1], active[:1]).to(device)
    spread = Spread(model, parallel, how="none" if options.compile_off else how)
    own = slice(parallel.rank * batch, (parallel.rank + 1) * batch)
    inputs = Inputs(numeric[own].to(device))
    target = numeric[own].roll(-1, 1).to(device)
    # At a rate of 0 what runs stays what was asked for.
    optimizer = torch.optim.AdamW(spread.model.parameters(), lr=0.0, weight_decay=0.0, fused=True)

    def step(*, exchange: bool) -> None:
        optimizer.zero_grad(set_to_none=True)
        with spread.backward(last=exchange):
            with _autocast(options, device):
                prediction = spread.module(inputs).prediction
            F.mse_loss(prediction.float(), target).backward()
        optimizer.step()

    together = _time(options, lambda: step(exchange=True), device)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    own_ms = None
    if parallel.sharding == "ddp":  # shares of weights cannot be computed with alone
        own_ms = _time(options, lambda: step(exchange=False), device).median

    steps = _of_all(parallel, together.median or 0.0)
    rows = _of_all(parallel, float(active[own].sum()))
    alone = None if own_ms is None else _of_all(parallel, own_ms)
    peaks = None if peak is None else _of_all(parallel, float(peak))
    return {
        "step": together.as_json(),
        "tokens_per_s": 1000 * numeric.shape[1] * len(numeric) / max(steps),
        "peak_bytes": None if peaks is None else int(max(peaks)),
        "rows_imbalance": None if kind == "transformer" else _most_over_mean(rows),
        "time_imbalance": None if alone is None else _most_over_mean(alone),
        "step_ms_by_rank": steps,
        "alone_ms_by_rank": alone,
        "rows_by_rank": rows,
        "peak_bytes_by_rank": peaks,
    }


def _draw(
    options: argparse.Namespace, sequences: int, generator: torch.Generator
) -> Bool[Tensor, "B T"]:
    """Draw the steps that are to run: each sequence has a share of its own."""
    low, high = (options.density * (1 + sign * options.spread) for sign in (-1, 1))
    share = low + (high - low) * torch.rand(sequences, 1, generator=generator)
    return torch.rand(sequences, options.length, generator=generator) < share


def _model(
    options: argparse.Namespace,
    kind: str,
    numeric: Float[Tensor, "1 T C"],
    active: Bool[Tensor, "1 T"],
) -> SequenceModel:
    """Make the model, equal in all processes."""
    sizes = layer_sizes(options)
    head = HeadConfig(kind="forecast", outputs=CHANNELS)
    around: dict[str, Any] = {"inputs": InputConfig(numeric=CHANNELS), "head": head}
    around |= {"width": sizes.width, "layers": options.layers}
    config: ArchitectureConfig
    if kind == "transformer":
        config = TransformerConfig(
            **around,
            heads=max(1, sizes.width // 64),
            hidden_width=4 * sizes.width,
            window=sizes.window,
        )
    else:
        # Above the largest share, by the noise of its draw.
        most = min(1.0, 1.1 * options.density * (1 + options.spread) + 0.01)
        fields = {"dispatch": "capacity", "capacity": most} if kind == "capacity" else {}
        config = ModelConfig(**around, **sizes.fields(**fields))
    torch.manual_seed(options.seed)
    model = build_model(config)
    if isinstance(model, SMAModel):
        first = Inputs(numeric[:, :_FIXED_ON])
        fix_model_routing(model, first, active[:, :_FIXED_ON])
    return model


def _time(options: argparse.Namespace, step: Callable[[], None], device: torch.device) -> Timings:
    """Time as many steps in every process: a step that one leaves out would hang the others."""
    found = Timings()
    for _ in range(options.rounds):
        found.milliseconds += time_round(
            step, device, iterations=options.iterations, warmup=options.warmup
        )
    return found


def _autocast(options: argparse.Namespace, device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16, enabled=options.dtype == "bfloat16")


def _of_all(parallel: Parallel, value: float) -> list[float]:
    """Give every process the value of each."""
    values = [0.0] * parallel.size
    values[parallel.rank] = value
    return parallel.sum(values)


def _most_over_mean(values: list[float]) -> float | None:
    mean = statistics.fmean(values)
    return max(values) / mean if mean else None
