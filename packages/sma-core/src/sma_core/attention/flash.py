"""Windowed attention by the fused kernel that stock PyTorch has for CUDA."""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from sma_core.dispatch import Rows

# Head widths that the kernel takes: multiples of 8 up to this.
WIDEST_HEAD = 256


def can_flash(value: Float[Tensor, "R H"], rows: Rows, query_width: int) -> bool:
    """Whether `flash_attention` takes rows of this device, dtype, number and width."""
    return (
        value.is_cuda
        and value.dtype in (torch.bfloat16, torch.float16)
        and rows.longest > 0
        and query_width % 8 == 0
        and query_width <= WIDEST_HEAD
        and value.shape[1] % query_width == 0
    )


def flash_attention(
    query: Float[Tensor, "R Z"],
    key: Float[Tensor, "R Z"],
    value: Float[Tensor, "R H"],
    rows: Rows,
    *,
    window: int,
    causal: bool,
) -> Float[Tensor, "R H"]:
    """Softmax attention over rows of the same sequence within a window.

    The kernel wants values as wide as keys: H is cut into heads of width Z that share one query
    and one key. Scores are computed for each of them anew, in fast memory.

    Parameters
    ----------
    query, key, value
        Queries are scaled and, with keys, rotated already. Queries and keys are rounded to the
        dtype of the values.
    rows
        Where they come from. Padding, which lies behind each sequence, is taken for rows of it:
        only a causal attention never sees it.
    window
        W: row i sees row j when ``0 <= i - j <= W``, or ``|i - j| <= W`` when not causal.
    causal
        Whether rows after the query are hidden.
    """
    # Imported here, as it takes the compiler along: seconds, for every command that never needs it.
    from torch.nn.attention.varlen import varlen_attn

    count, width = query.shape
    heads = value.shape[1] // width
    query, key = (x.to(value.dtype).unsqueeze(1).expand(-1, heads, -1) for x in (query, key))
    border = torch.cat((rows.start, rows.start.new_full((1,), count))).to(torch.int32)
    seen = varlen_attn(
        query,
        key,
        value.view(count, heads, width),
        border,
        border,
        rows.longest,
        rows.longest,
        scale=1.0,
        window_size=(window, 0 if causal else window),
    )
    return cast("Tensor", seen).flatten(1)
