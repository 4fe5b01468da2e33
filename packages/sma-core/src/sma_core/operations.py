"""One operation of a model as its memory sees it: what is read, written and kept for backward.

Bytes moved are the least that the equations need. What a product, a recurrence, a norm, a gather or
an attention reads and writes goes through memory once; functions of one element ride along with the
operation beside them, attention weights never leave the fast memory, and neither do EMA states.
"""

from dataclasses import dataclass

from sma_core.errors import ConfigError

Count = int | float  # of rows, numbers or bytes: whole, or a mean


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much an operation runs on, and the bytes of a number.

    Parameters
    ----------
    rows
        Rows of all sequences together: time steps, or the active ones where a sub-module is meant.
    sequences
        B.
    narrow
        Bytes of a number in products and of their results: 2 under autocast to bfloat16, else 4.
    wide
        Bytes of a number elsewhere, of weights and of their gradients.
    fused
        Whether attention runs in a kernel that keeps no weights for backward.
    """

    rows: Count
    sequences: int
    narrow: int = 4
    wide: int = 4
    fused: bool = False

    def __post_init__(self) -> None:
        if self.rows < 0 or self.sequences < 1:
            raise ConfigError(
                f"rows, sequences: need at least 0 and 1, got {self.rows} and {self.sequences}"
            )

    @property
    def longest(self) -> Count:
        """Rows of one sequence; all are taken to be equally long and equally active."""
        return self.rows / self.sequences


@dataclass(frozen=True, kw_only=True)
class Operation:
    """Bytes of one operation in one pass over a batch.

    Parameters
    ----------
    name
        What it does, in a word.
    read, written
        Activations that its forward reads and writes.
    weights
        Weights that its forward reads.
    kept
        Activations held from here to the backward pass that no earlier operation holds already.
    working
        What lives while the operation runs and no longer, beside `read` and `written`.
    back
        Bytes of its backward. None: what a product needs, which reads the gradient of its output,
        its inputs and weights, and writes gradients of inputs and weights.
    """

    name: str
    read: Count
    written: Count
    weights: Count = 0
    kept: Count = 0
    working: Count = 0
    back: Count | None = None

    @property
    def forward(self) -> Count:
        """Bytes moved by the forward pass."""
        return self.read + self.weights + self.written

    @property
    def backward(self) -> Count:
        """Bytes moved by the backward pass."""
        return self.written + 2 * (self.read + self.weights) if self.back is None else self.back


def linear(
    name: str,
    extent: Extent,
    inputs: Count,
    outputs: Count,
    *,
    factors: int = 1,
    kept: Count = 0,
) -> Operation:
    """Linear map with a bias of every row.

    Parameters
    ----------
    name
        Of the operation.
    extent
        The rows, and the bytes of a number.
    inputs, outputs
        Numbers of a row before and after.
    factors
        Vectors whose product, element by element, is the input.
    kept
        As of `Operation`, in numbers of a row. A copy of the weights in bfloat16 is added where
        products take that.
    """
    rows, size = extent.rows, extent.narrow
    weights = (inputs + 1) * outputs if rows else 0.0
    copies = weights * size if size < extent.wide else 0.0
    return Operation(
        name=name,
        read=rows * inputs * factors * size,
        written=rows * outputs * size,
        weights=weights * extent.wide,
        kept=rows * kept * size + copies,
        working=copies,
    )
