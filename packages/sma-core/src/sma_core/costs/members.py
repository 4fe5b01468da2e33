"""Operations of every member of the pool, on its active rows.

A row enters as D numbers, which the gather before it keeps. Axes as in `costs.flops`.
"""

import math
from functools import singledispatch

from sma_core.attention.blocks import BLOCK
from sma_core.config import GatedAttentionConfig, SubModuleConfig, SwiGLUConfig
from sma_core.ema import CHUNK
from sma_core.errors import ConfigError
from sma_core.operations import Count, Extent, Operation, linear
from sma_core.submodule_configs import (
    ActiveEMAConfig,
    FullAttentionConfig,
    LocalConvolutionConfig,
)

_INDEX = 8  # bytes of an index


@singledispatch
def submodule_operations(
    config: SubModuleConfig, width: int, causal: bool, extent: Extent
) -> list[Operation]:
    """Operations of a sub-module on its active rows.

    A sub-module of another kind adds its own: ``@submodule_operations.register``.

    Parameters
    ----------
    config : SubModuleConfig
        The sub-module.
    width : int
        D.
    causal : bool
        Whether rows after the present one are hidden.
    extent : Extent
        How many rows are active, in how many sequences.
    """
    raise ConfigError(f"pool: no list of operations for sub-module {config.kind!r}")


@submodule_operations.register
def _(config: GatedAttentionConfig, width: int, causal: bool, extent: Extent) -> list[Operation]:
    z, h = config.query_width, config.value_width
    rows, size = extent.rows, extent.narrow
    rotary = config.position == "rotary"
    turn = Operation(  # two scalings of one vector, and their rotation
        name="queries and keys",
        read=rows * z * size,
        written=rows * 2 * z * size,
        weights=4 * z * extent.wide if rows else 0.0,
        kept=rows * z * extent.wide if rotary else 0.0,
    )
    return [
        # Before and after the SiLU.
        linear("project", extent, width, z + 2 * h, kept=2 * (z + 2 * h)),
        turn,
        _attend(config, causal, extent),
        linear("output", extent, h, width, factors=2, kept=h),
    ]


def _attend(config: GatedAttentionConfig, causal: bool, extent: Extent) -> Operation:
    z, h = config.query_width, config.value_width
    rows, size = extent.rows, extent.narrow
    seen, copies = _span(rows, config.window, causal)
    softmax, biased = config.score == "softmax", config.position != "rotary"
    score = extent.wide if biased else size  # a learned bias makes the sum as wide as itself
    spans = rows * copies * (z + h) * size
    if extent.fused and softmax and not biased:
        # Queries, keys, and the log of each row's sum.
        kept, working = rows * (2 * z * size + extent.wide), 0.0
    else:
        weights = score if softmax and score == size else score + size
        mask = 1 + (_INDEX if config.position == "simple" else 0)
        kept = rows * (z * size + seen * (weights + mask)) + spans
        bias = extent.wide if config.position == "simple" else 0
        working = rows * seen * (2 * score + mask + bias) + spans
    return Operation(
        name="attend",
        read=rows * (2 * z + h) * size,
        written=rows * h * size,
        kept=kept + rows * h * size,
        working=working,
    )


def _span(rows: Count, window: int, causal: bool) -> tuple[int, int]:
    """Keys that a blocked attention lays beside each row, and copies of each key that it makes."""
    block = min(BLOCK, max(1, math.ceil(rows)))
    reach = min(math.ceil(window / block), max(1, math.ceil(rows / block)) - 1)
    copies = 1 + (1 if causal else 2) * reach
    return copies * block, copies


@submodule_operations.register
def _(config: SwiGLUConfig, width: int, causal: bool, extent: Extent) -> list[Operation]:
    hidden = config.hidden_width
    return [
        linear("project", extent, width, 2 * hidden, kept=2 * hidden),
        # The gate after its SiLU, and the product.
        linear("output", extent, hidden, width, factors=2, kept=2 * hidden),
    ]


@submodule_operations.register
def _(config: LocalConvolutionConfig, width: int, causal: bool, extent: Extent) -> list[Operation]:
    taps = config.kernel_size if causal else 2 * config.kernel_size - 1
    rows, size = extent.rows, extent.narrow
    convolve = Operation(
        name="convolve",
        read=rows * width * size,
        written=rows * width * size,
        weights=(taps + 1) * width * extent.wide if rows else 0.0,
        # Each tap but the middle one has a copy of the rows, shifted; then the sum before the SiLU.
        kept=rows * width * ((taps - 1) * size + extent.wide),
        working=rows * width * 2 * extent.wide,
    )
    return [convolve, linear("output", extent, width, width, kept=width)]


@submodule_operations.register
def _(config: FullAttentionConfig, width: int, causal: bool, extent: Extent) -> list[Operation]:
    inner = config.heads * config.head_width
    rows, size = extent.rows, extent.narrow
    seen, copies = _span(rows, config.max_rows - 1, causal)
    turn = Operation(
        name="queries and keys",
        read=rows * 2 * inner * size,
        written=rows * 2 * inner * size,
        kept=rows * inner * extent.wide,
    )
    spans = rows * (2 * copies * inner + seen) * size  # of keys, of values, and the mask
    attend = Operation(
        name="attend",
        read=rows * 3 * inner * size,
        written=rows * inner * size,
        kept=rows * (2 * inner * size + config.heads * extent.wide) + spans,
        working=spans + rows * seen,
    )
    return [
        linear("project", extent, width, 3 * inner),
        turn,
        attend,
        linear("output", extent, inner, width),
    ]


@submodule_operations.register
def _(config: ActiveEMAConfig, width: int, causal: bool, extent: Extent) -> list[Operation]:
    # Laid out by sequence, and back: an index each way.
    return [
        recurrence(config.states, width, causal, extent, index=2),
        linear("output", extent, width, width),
    ]


def recurrence(
    states: int, width: int, causal: bool, extent: Extent, *, fft: bool = False, index: int = 0
) -> Operation:
    """EMA and the SiLU behind it, whose input and output are kept.

    Parameters
    ----------
    states, width, causal
        N, D, and whether one direction of time does.
    extent
        The rows.
    fft
        Whether the recurrence is a convolution in the domain of frequencies.
    index
        Arrays of row numbers that are kept.
    """
    rows, size, wide = extent.rows, extent.narrow, extent.wide
    channels = width if causal else 2 * width
    work = rows * channels
    if fft:  # input and kernel, padded to twice their length, and the spectra of both
        spectra = 4 * wide * channels * (rows + extent.longest)
        inside = spectra + channels * 2 * states * math.sqrt(extent.longest) * wide
        # The direct term reads its input again.
        kept, working = inside + rows * width * wide, inside
    else:
        chunk = min(CHUNK, max(1, math.ceil(extent.longest)))
        chunks = max(1, math.ceil(extent.longest / chunk))
        # A Toeplitz block of each channel: a view of twice its size, or a rounded copy of it.
        view, copy = channels * chunk**2 * 2 * wide, channels * chunk**2 * size
        block = view if size == wide else copy
        between = 0.0
        if chunks > 1:
            between = channels * chunk * states * (2 * wide + 2 * size)
            handed_on = extent.sequences * chunks * channels * states
            between += handed_on * (math.ceil(math.log2(chunks)) * wide + size)
        kept = work * size + (block + between if rows else 0.0)
        # Input by channel and output by channel, beside the block or a second output.
        blocks = view if size == wide else view + copy
        working = work * 2 * size + max(blocks, work * size + between) if rows else 0.0
    return Operation(
        name="recurrence",
        read=rows * width * wide,
        written=rows * width * size,
        weights=(channels * 4 * states + width) * wide if rows else 0.0,
        kept=kept + rows * (2 * width * size + index * _INDEX),
        working=working,
    )
