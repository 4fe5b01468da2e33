"""The one table of numeric tolerances. A test names a row; the row says why it is that wide."""

from typing import NamedTuple

import torch
from torch import Tensor


class Tolerance(NamedTuple):
    """Largest allowed relative difference, ||a - b|| / ||b||, and why it is not smaller."""

    relative: float
    reason: str


TOLERANCES: dict[str, Tolerance] = {
    "float64": Tolerance(1e-10, "same equations, other order of summation"),
    "float32": Tolerance(2e-5, "sums of up to a few thousand terms in another order"),
    "bfloat16": Tolerance(2e-2, "8 bits of mantissa, rounded at every layer"),
    "vanishing gradient": Tolerance(
        1e-2,
        "share of the largest gradient of a model below which one is compared with that share: "
        "rounding leaves no relative precision in what is zero in exact arithmetic",
    ),
    "float16": Tolerance(5e-3, "11 bits of mantissa, rounded at every layer"),
    "stream_row": Tolerance(1e-4, "worst single row, and an error is a difference of near equals"),
    "published layer, output": Tolerance(1e-5, "float32 against a layer that works in float32"),
    "published layer, gradient": Tolerance(1e-4, "the same, and its FFT's rounding in backward"),
    "block_flops": Tolerance(0.5, "a block of queries reads more keys than each query sees"),
    "kept_bytes": Tolerance(0.08, "coefficients and small arrays of row numbers are not listed"),
    "peak_bytes": Tolerance(0.25, "not every local variable of a pass is listed"),
    "eager_bytes": Tolerance(
        0.9, "an eager pass writes attention weights, Toeplitz blocks, masks, every small function"
    ),
}


def relative_difference(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b|| in float64; infinite where either holds a NaN or they differ in shape."""
    if a.shape != b.shape:
        return float("inf")
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    difference = (a - b).norm() / b.norm().clamp_min(1e-30)
    return float("inf") if torch.isnan(difference) else difference.item()


def assert_close(a: Tensor, b: Tensor, row: str) -> None:
    """Fail unless `a` and `b` agree within the named row of the table."""
    difference = relative_difference(a, b)
    limit = TOLERANCES[row]
    assert difference <= limit.relative, f"{difference:.3g} > {limit.relative:.3g} ({limit.reason})"
