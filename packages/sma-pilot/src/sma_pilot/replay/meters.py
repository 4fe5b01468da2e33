"""Memory meters. What cannot be read is None, never 0."""

import ctypes
import gc
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

import psutil
import torch

_INTERVAL_SECONDS = 0.01


def private_bytes() -> int:
    """Resident memory of this process that is its own.

    Pages of mapped files, such as the data set's, are left out: they belong to the page cache,
    and whichever arm runs first would be charged with them. Where the system does not tell the two
    apart (outside Linux) it is all of the resident memory.
    """
    memory = psutil.Process().memory_info()
    return memory.rss - getattr(memory, "shared", 0)


def release_freed_memory() -> None:
    """Hand freed memory back to the system, so that one leg's leftovers do not serve the next.

    Without it a leg that reuses what an earlier one freed would seem to need none.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    # Only glibc can be asked; another allocator keeps its own counsel.
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


class PeakMemory:
    """Peak of private memory and of CUDA memory while a block runs.

    Private memory is sampled by a thread, every 10 ms: a shorter spike can be missed. A thread
    disturbs what is timed event by event, so with ``sampled=False`` there is none, and memory is
    read when the block begins and when it calls `sample`. The harness's own buffers count too.

    Parameters
    ----------
    sampled : bool
        Whether a thread samples.
    device : str
        CUDA memory is metered when this is ``cuda``.

    Attributes
    ----------
    baseline_rss_bytes : int
        Private memory at the start.
    peak_rss_bytes : int
        Largest private memory seen, baseline included.
    peak_cuda_bytes : int or None
        Largest memory of tensors on the CUDA device; None without one.
    """

    def __init__(self, *, sampled: bool, device: str) -> None:
        self._cuda = device == "cuda"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True) if sampled else None
        self.baseline_rss_bytes = 0
        self.peak_rss_bytes = 0
        self.peak_cuda_bytes: int | None = None

    def __enter__(self) -> Self:
        release_freed_memory()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        self.baseline_rss_bytes = self.peak_rss_bytes = private_bytes()
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self.sample()
        if self._cuda:
            self.peak_cuda_bytes = torch.cuda.max_memory_allocated()

    def sample(self) -> None:
        """Take a reading now."""
        self.peak_rss_bytes = max(self.peak_rss_bytes, private_bytes())

    def _run(self) -> None:
        while not self._stop.wait(_INTERVAL_SECONDS):
            self.sample()
