"""Scores to weights to values, for blocks of rows or for one step: the attention itself."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sma_core.attention.blocks import RowBlocks
from sma_core.attention.positions import PositionScheme
from sma_core.config import Score


def weigh(
    scores: Float[Tensor, "*S"],
    bias: Float[Tensor, "*#S"] | None,
    hidden: Bool[Tensor, "*#S"],
    kind: Score,
) -> Float[Tensor, "*S"]:
    """Turn scores into attention weights, exactly zero where hidden.

    `kind` is ``softmax`` over the last axis or ``relu2``, the squared ReLU, which does not
    normalise (So et al., arXiv 2109.08668).
    """
    if bias is not None:
        scores = scores + bias
    scores = scores.masked_fill(hidden, float("-inf"))
    return scores.softmax(-1) if kind == "softmax" else scores.relu().square()


def windowed_attention(
    query: Float[Tensor, "R Z"],
    key: Float[Tensor, "R Z"],
    value: Float[Tensor, "R H"],
    group: Int[Tensor, "R"],
    position: Int[Tensor, "R"],
    *,
    window: int,
    causal: bool,
    score: Score,
    scheme: PositionScheme,
) -> Float[Tensor, "R H"]:
    """Attend over rows of the same group within a window, in O(R W) time and memory.

    Parameters
    ----------
    query, key, value
        Queries are scaled and, with keys, rotated already.
    group
        Rows see only rows of their own group, which lie side by side.
    position
        Time index of each row.
    window
        W: row i sees row j when ``0 <= i - j <= W``, or ``|i - j| <= W`` when not causal.
    causal
        Whether rows after the query are hidden.
    score
        ``softmax`` or ``relu2``.
    scheme
        Gives the bias by distance.
    """
    blocks = RowBlocks(group, window=window, causal=causal)
    time = None
    if scheme.uses_time:
        time = blocks.queries(position).unsqueeze(-1) - blocks.keys(position).unsqueeze(1)
    bias = scheme.bias(blocks.distance if scheme.uses_rows else None, time)
    scores = torch.bmm(blocks.queries(query), blocks.keys(key).mT)
    weights = weigh(scores, bias, blocks.hidden, score)
    return blocks.rows(torch.bmm(weights.to(value.dtype), blocks.keys(value)))
