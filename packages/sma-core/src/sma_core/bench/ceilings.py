"""The floor of a layer's time: its operations and bytes over what this machine can do."""

from typing import NamedTuple

import torch

from sma_core.bench.sizes import LayerSizes
from sma_core.bench.timing import Deadline, time_in_turn


class Ceilings(NamedTuple):
    """What the machine reaches.

    `flops` per second in products of bfloat16 matrices of random numbers, `bytes` per second read
    and written by a copy.
    """

    flops: float
    bytes: float


class Phase(NamedTuple):
    """FLOPs and least bytes of a part of the layer that waits for the part before it."""

    name: str
    flops: float
    bytes: float


def measure_ceilings(
    device: torch.device, *, copy_mib: int, matrix: int, deadline: Deadline
) -> Ceilings:
    """Copy `copy_mib` MiB, and multiply square matrices of `matrix` rows.

    Raises
    ------
    RuntimeError
        Neither could be timed.
    """
    source = torch.randn(copy_mib * 2**18, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(matrix, matrix, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(a)

    def copy() -> None:
        target.copy_(source)

    def multiply() -> None:
        torch.mm(a, b, out=product)

    steps = {"copy": copy, "multiply": multiply}
    found = time_in_turn(steps, device, rounds=3, iterations=10, warmup=3, deadline=deadline)
    times = {name: result.median for name, result in found.items()}
    if times["copy"] is None or times["multiply"] is None:
        raise RuntimeError("; ".join(f"{n}: {r.failure}" for n, r in found.items() if r.failure))
    return Ceilings(
        flops=2 * matrix**3 / (times["multiply"] / 1000),
        bytes=2 * source.nbytes / (times["copy"] / 1000),
    )


def rows_seen(rows: float, window: int) -> float:
    """Rows that a row sees on average, itself included, in a sequence of so many active rows."""
    if rows <= window + 1:
        return (rows + 1) / 2
    return window + 1 - window * (window + 1) / (2 * rows)


def inference_phases(sizes: LayerSizes, *, tokens: int, steps: int, density: float) -> list[Phase]:
    """Operations and least bytes of a forward pass.

    The residual stream is float32, all else bfloat16; weights, logits and indices are left out.
    What a later phase needs in another order is written once and read once, all else stays on
    chip.

    Parameters
    ----------
    sizes
        Widths.
    tokens, steps
        In all, and of a sequence.
    density
        Share of steps that run.
    """
    d, z, h, n = sizes.width, sizes.query_width, sizes.value_width, sizes.states
    rows = tokens * density
    seen = rows_seen(steps * density, sizes.window)
    return [
        # Reads x; writes y, which the dense path reads by step and the pool by row.
        Phase("EMA", tokens * d * (5 * n + 2), tokens * (4 * d + 2 * d)),
        # Reads y's rows; writes queries, keys, values and gates, as rows see other rows.
        Phase("rows in", rows * 2 * d * (z + 2 * h), rows * (2 * d + 2 * (2 * z + 2 * h))),
        # Reads these, writes rows.
        Phase(
            "attention",
            rows * 2 * (seen * (z + h) + h * d),
            rows * (2 * (2 * z + 2 * h) + 2 * d),
        ),
        # Reads y, rows and x again, writes the layer's output.
        Phase(
            "dense path, sum",
            tokens * 2 * d * (d + 2),
            tokens * (2 * d + 4 * d + 4 * d) + rows * 2 * d,
        ),
    ]


def training_phases(sizes: LayerSizes, *, tokens: int, steps: int, density: float) -> list[Phase]:
    """Operations and least bytes of a forward and a backward pass; see `inference_phases`.

    Backward does each product twice, for its two factors. It reads again what forward wrote; only
    the attended values are written by forward for it.
    """
    d, z, h, n = sizes.width, sizes.query_width, sizes.value_width, sizes.states
    rows = tokens * density
    seen = rows_seen(steps * density, sizes.window)
    forward = inference_phases(sizes, tokens=tokens, steps=steps, density=density)
    forward[2] = forward[2]._replace(bytes=forward[2].bytes + rows * 2 * h)
    narrow = 2 * (2 * z + 2 * h)  # bytes of a row's query, key, value and gate
    return [
        *forward,
        # Reads the gradient, x, y and the rows that were added; writes gradients of the sum, of y.
        Phase(
            "dense path, backward",
            tokens * 4 * d * (d + 2),
            tokens * (4 * d + 4 * d + 2 * d + 2 * d + 2 * d) + rows * 2 * d,
        ),
        # Reads its gradient's rows, what forward read, attended values; writes four gradients.
        Phase(
            "attention, backward",
            rows * 4 * (seen * (z + h) + h * d),
            rows * (2 * d + narrow + 2 * h + narrow),
        ),
        # Reads these and y's rows, adds to the rows of y's gradient.
        Phase(
            "rows in, backward",
            rows * 4 * d * (z + 2 * h),
            rows * (narrow + 2 * d + 2 * d),
        ),
        # Reads the gradients of y and of the sum, and x; writes the gradient of x.
        Phase(
            "EMA, backward",
            tokens * 2 * d * (5 * n + 2),
            tokens * (2 * d + 2 * d + 4 * d + 4 * d),
        ),
    ]


def floor_seconds(phases: list[Phase], ceilings: Ceilings) -> float:
    """Sum over phases of the longer of computing and moving."""
    return sum(max(phase.flops / ceilings.flops, phase.bytes / ceilings.bytes) for phase in phases)
