"""Who is looking: code that is traced or recorded may need another form than code that runs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_exporting = False
_recording = False


@contextmanager
def as_export() -> Iterator[None]:
    """Say that what runs inside is exported: a graph without a host, for sizes of any kind.

    Not left to `torch.compiler.is_exporting`, which torch 2.11 also answers with yes where
    `torch.compile` asks.
    """
    global _exporting
    before, _exporting = _exporting, True
    try:
        yield
    finally:
        _exporting = before


@contextmanager
def as_recording() -> Iterator[None]:
    """Say that what runs inside is recorded for replay: the host must read nothing."""
    global _recording
    before, _recording = _recording, True
    try:
        yield
    finally:
        _recording = before


def is_exporting() -> bool:
    """Whether `as_export` is on."""
    return _exporting


def is_recording() -> bool:
    """Whether `as_recording` is on."""
    return _recording


def is_compiling() -> bool:
    """Whether `torch.compile` traces, for sizes that it knows."""
    return torch.compiler.is_compiling() and not _exporting


def autocasts_to_bfloat16(device: str) -> bool:
    """Whether autocast rounds the operands of products to bfloat16 on this kind of device.

    Not to float16: readings of a post-norm model outgrow its range.
    """
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) is torch.bfloat16
