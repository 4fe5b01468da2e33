"""The energy meter: what an accelerator's own counter rose by. What cannot be read is None."""

from importlib import import_module
from types import TracebackType
from typing import Any, Self

import torch

from sma_pilot.replay.clock import Clock

# The counter moves every 20 to 100 ms: over a shorter window its steps would be what is measured.
_LEAST_SECONDS = 2.0


class EnergyMeter:
    """Energy of the current CUDA device while a block runs, by NVML's total-energy counter.

    It is that of the whole board, other processes included. The board is found by its identifier:
    NVML counts those that ``CUDA_VISIBLE_DEVICES`` hides, too. NVML is read by the package
    ``nvidia-ml-py`` (extra ``energy``); without it, without a counter, or over less than two
    seconds, nothing was measured.

    Parameters
    ----------
    device : str
        Metered when this is ``cuda``.
    clock : Clock
        Tells how long the block ran.

    Attributes
    ----------
    joules : float or None
    """

    def __init__(self, *, device: str, clock: Clock) -> None:
        self._nvml = _open_nvml() if device == "cuda" else None
        self._clock = clock
        self._before: float | None = None
        self._since = 0
        self.joules: float | None = None

    def __enter__(self) -> Self:
        self._before, self._since = self._read(), self._clock()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        long_enough = self._clock() - self._since >= _LEAST_SECONDS * 1e9
        after = self._read()
        if self._before is not None and after is not None and long_enough:
            self.joules = after - self._before if after > self._before else None

    def _read(self) -> float | None:
        if self._nvml is None:
            return None
        try:
            handle = self._nvml.nvmlDeviceGetHandleByUUID(_board())
            return self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
        except self._nvml.NVMLError:  # older boards have no such counter
            return None


def _board() -> str:
    """Name the current CUDA device as NVML does."""
    return f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"


def _open_nvml() -> Any:
    try:
        nvml = import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:  # no driver
        return None
    return nvml
