"""Time steps as a training loop runs them: back to back, peers in turn, one wait at the end."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Step = Callable[[], None]


class Deadline:
    """Seconds that a benchmark may take, from now on."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def passed(self) -> bool:
        """Whether nothing new should begin."""
        return time.monotonic() >= self._end


@dataclass
class Timings:
    """Milliseconds of each repetition, and why there are none.

    Parameters
    ----------
    milliseconds
        In the order of measurement; empty where the step failed.
    failure
        What went wrong, in one line; empty when nothing did.
    """

    milliseconds: list[float] = field(default_factory=list)
    failure: str = ""

    @property
    def median(self) -> float | None:
        """Median in milliseconds; None without a measurement."""
        return statistics.median(self.milliseconds) if self.milliseconds else None

    @property
    def spread(self) -> float | None:
        """Distance of the quartiles in milliseconds; None with fewer than two measurements."""
        if len(self.milliseconds) < 2:
            return None
        low, _, high = statistics.quantiles(self.milliseconds, n=4)
        return high - low

    def as_json(self) -> dict[str, Any]:
        """Plain values, raw times too."""
        return {
            "median_ms": self.median,
            "iqr_ms": self.spread,
            "raw_ms": self.milliseconds,
            "failure": self.failure,
        }


def synchronise(device: torch.device) -> None:
    """Wait until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(step: Step, device: torch.device) -> float:
    """Time one step that starts and ends with an idle device."""
    synchronise(device)
    begin = time.perf_counter()
    step()
    synchronise(device)
    return time.perf_counter() - begin


def time_round(step: Step, device: torch.device, *, iterations: int, warmup: int) -> list[float]:
    """Milliseconds of each of `iterations` steps, after `warmup` of them."""
    for _ in range(warmup):
        step()
    if device.type != "cuda":
        return [1000 * seconds_of(step, device) for _ in range(iterations)]
    pairs = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(iterations)
    ]
    # No wait in between: the host may run ahead of the device, as it does in use.
    for begin, end in pairs:
        begin.record()
        step()
        end.record()
    torch.cuda.synchronize(device)
    return [begin.elapsed_time(end) for begin, end in pairs]


def time_in_turn(
    steps: Mapping[str, Step],
    device: torch.device,
    *,
    rounds: int,
    iterations: int,
    warmup: int,
    deadline: Deadline,
) -> dict[str, Timings]:
    """Time several steps in turn, round by round, so that drift of the clock hits all alike.

    Parameters
    ----------
    steps
        By name.
    device
        Where they run.
    rounds, iterations
        Rounds, and timed repetitions of each step in a round.
    warmup
        Repetitions before the timed ones of a round.
    deadline
        After it no further round begins.
    """
    found = {name: Timings() for name in steps}
    for number in range(rounds):
        for name, step in steps.items():
            result = found[name]
            if result.failure:
                continue
            if deadline.passed:
                if not number:
                    result.failure = "skipped: no time left"
                continue
            try:
                result.milliseconds += time_round(
                    step, device, iterations=iterations, warmup=warmup
                )
            except Exception as error:
                result.milliseconds.clear()
                result.failure = failure_text(error)
    return found


def peak_bytes(step: Step, device: torch.device) -> int | None:
    """Largest allocation during a step over that before it; None off CUDA."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def failure_text(error: BaseException) -> str:
    """One line of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"failed: {type(error).__name__}: {lines[0][:160] if lines else 'no message'}"
