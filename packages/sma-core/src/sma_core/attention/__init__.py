"""Windowed attention over packed rows, on any device, with stock operations."""

from sma_core.attention.blocks import RowBlocks
from sma_core.attention.cache import AttentionCache
from sma_core.attention.flash import can_flash, flash_attention
from sma_core.attention.positions import Local, PositionScheme, Rotary, Simple, build_positions
from sma_core.attention.windowed import weigh, windowed_attention

__all__ = [
    "AttentionCache",
    "Local",
    "PositionScheme",
    "Rotary",
    "RowBlocks",
    "Simple",
    "build_positions",
    "can_flash",
    "flash_attention",
    "weigh",
    "windowed_attention",
]
