"""Geometry of blocked windowed attention: blocks of query rows against the span they can see."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional

from sma_core.tracing import is_exporting

# Rows of a query block. Work per row grows as W + BLOCK, so a block is no longer than needed to
# keep the matrix products efficient.
BLOCK = 32


class RowBlocks:
    """R rows cut into G blocks of Q queries, each facing a span of S keys.

    The span is the block itself and the blocks that the window reaches: O(R (W + Q)) memory.

    Parameters
    ----------
    group
        Rows see only rows of their own group. Rows of a group lie side by side.
    window
        W: rows see each other up to this distance in rows.
    causal
        Whether a row sees only itself and rows before it.
    """

    hidden: Bool[Tensor, "G Q S"]
    distance: Int[Tensor, "Q S"]  # rows from the key up to the query, the same in every block

    def __init__(self, group: Int[Tensor, "R"], *, window: int, causal: bool) -> None:
        self._rows = group.shape[0]
        if is_exporting():  # one graph for any number of rows
            self._block = BLOCK
            self._count = 1 + self._rows // BLOCK  # one too many where it divides, but always one
            self._before = -(-window // BLOCK)
        else:
            self._block = max(1, min(BLOCK, self._rows))
            # One block at least, so that no rows at all still reach every weight.
            self._count = max(1, -(-self._rows // self._block))
            self._before = min(-(-window // self._block), self._count - 1)
        self._after = 0 if causal else self._before

        query = torch.arange(self._block, device=group.device)
        span = (self._before + 1 + self._after) * self._block
        key = torch.arange(span, device=group.device) - self._before * self._block
        self.distance = query[:, None] - key
        far = self.distance.abs() > window
        if causal:
            far |= self.distance < 0
        # Rows added at the end form a group of their own, so that no softmax is empty.
        other = self.queries(group, fill=-1).unsqueeze(-1) != self.keys(group, -1, -2).unsqueeze(1)
        self.hidden = other | far

    def queries(self, x: Tensor, fill: int = 0) -> Tensor:
        """Cut rows [R, ...] into blocks [G, Q, ...]."""
        end = self._count * self._block - self._rows
        return _pad_rows(x, 0, end, fill).unflatten(0, (self._count, self._block))

    def keys(self, x: Tensor, fill: int = 0, outside: int = 0) -> Tensor:
        """Lay over rows [R, ...] the spans [G, S, ...]."""
        blocks = _pad_rows(self.queries(x, fill), self._before, self._after, outside)
        reach = self._before + 1 + self._after
        # Copies, not an overlapping view: that one's backward and products are slower still.
        return torch.cat([blocks[i : i + self._count] for i in range(reach)], dim=1)

    def rows(self, x: Tensor) -> Tensor:
        """Join blocks [G, Q, ...] to rows [R, ...], the inverse of `queries`."""
        return x.flatten(0, 1)[: self._rows]


def _pad_rows(x: Tensor, before: int, after: int, fill: int) -> Tensor:
    return functional.pad(x, (0, 0) * (x.dim() - 1) + (before, after), value=fill)
