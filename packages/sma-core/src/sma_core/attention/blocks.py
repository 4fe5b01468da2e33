"""Geometry of blocked windowed attention: blocks of query rows against the span they can see."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional

# Rows of a query block. Work per row grows as W + BLOCK, so a block is no longer than needed to
# keep the matrix products efficient.
BLOCK = 32


class RowBlocks:
    """R rows cut into G blocks of Q queries, each facing a span of S = W + Q (+ W) keys.

    Memory is O(R (W + Q)). Spans overlap, and are views as long as nothing writes to them.

    Parameters
    ----------
    group
        Rows see only rows of their own group. Rows of a group lie side by side.
    window
        W: rows see each other up to this distance in rows.
    causal
        Whether a row sees only itself and rows before it.
    """

    visible: Bool[Tensor, "G Q S"]
    distance: Int[Tensor, "Q S"]  # rows from the key up to the query, the same in every block

    def __init__(self, group: Int[Tensor, "R"], *, window: int, causal: bool) -> None:
        self._rows = group.shape[0]
        self._block = max(1, min(BLOCK, self._rows))
        # One block at least, so that no rows at all still reach every weight.
        self._end = max(1, -(-self._rows // self._block)) * self._block - self._rows
        self._before = min(window, max(0, self._rows - 1))
        self._after = 0 if causal else self._before

        span = self._before + self._block + self._after
        query = torch.arange(self._block, device=group.device)
        key = torch.arange(span, device=group.device) - self._before
        self.distance = query[:, None] - key
        near = self.distance.abs() <= window
        if causal:
            near &= self.distance >= 0
        # Rows added at the end form a group of their own (-1), so that no softmax is empty.
        ids = functional.pad(group, (0, self._end), value=-1)
        padded = functional.pad(ids, (self._before, self._after), value=-2)
        same = ids.view(-1, self._block, 1) == padded.unfold(0, span, self._block).unsqueeze(1)
        self.visible = same & near

    def queries(self, x: Tensor) -> Tensor:
        """Cut rows [R, ...] into blocks [G, Q, ...]."""
        return _pad_rows(x, 0, self._end).unflatten(0, (-1, self._block))

    def keys(self, x: Tensor) -> Tensor:
        """Lay over rows [R, ...] the spans [G, S, ...]."""
        padded = _pad_rows(x, self._before, self._end + self._after)
        return padded.unfold(0, self.distance.shape[1], self._block).movedim(-1, 1)

    def rows(self, x: Tensor) -> Tensor:
        """Join blocks [G, Q, ...] to rows [R, ...], the inverse of `queries`."""
        return x.flatten(0, 1)[: self._rows]


def _pad_rows(x: Tensor, before: int, after: int) -> Tensor:
    return functional.pad(x, (0, 0) * (x.dim() - 1) + (before, after))
