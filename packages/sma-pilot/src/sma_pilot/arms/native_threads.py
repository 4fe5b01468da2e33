"""Threads of native code that is not PyTorch's: as many as the plan says."""

import weakref


def hold_threads(owner: object, threads: int) -> None:
    """Limit the libraries that are loaded by now, for as long as `owner` lives."""
    from threadpoolctl import threadpool_limits

    limits = threadpool_limits(threads)
    weakref.finalize(owner, limits.restore_original_limits)
