"""How many threads torch computes with, for as long as a block runs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def compute_threads(number: int) -> Iterator[None]:
    """Let torch compute with `number` threads while the block runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
