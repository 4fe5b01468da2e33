"""Progress of long work on stderr: a live bar on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class OnProgress(Protocol):
    """What long work calls: the stage's name, units done, and units in all where known."""

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Take note that `done` of `total` units of `stage` are done."""
        ...


def no_progress(stage: str, done: int, total: int | None) -> None:
    """Take no note: for work that is part of a longer one."""


class PlainProgress:
    """A line when a stage starts and ends, and every few seconds between: fit for log files."""

    def __init__(self, every: float = 5.0) -> None:
        self._every = every
        self._stage = ""
        self._last = 0.0

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Print a line if the stage is new, complete, or silent for long."""
        now = time.monotonic()
        complete = total is not None and done >= total
        if stage != self._stage or complete or now - self._last >= self._every:
            self._stage, self._last = stage, now
            amount = f"{done:,} of {total:,}" if total is not None else f"{done:,}"
            print(f"{stage}: {amount}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing is held open."""


class LiveProgress:
    """One bar per stage, for a person at a terminal."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, object] = {}
        self._bars.start()

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Move the stage's bar, drawn when the stage is first heard of."""
        if stage not in self._tasks:
            # Stage names may hold names from a log; rich would read [..] in them as markup.
            self._tasks[stage] = self._bars.add_task(stage.replace("[", r"\["), total=total)
        self._bars.update(self._tasks[stage], completed=done, total=total)  # pyright: ignore[reportArgumentType]

    def close(self) -> None:
        """Leave the finished bars on the screen and give the terminal back."""
        self._bars.stop()


def make_progress() -> LiveProgress | PlainProgress:
    """Return live bars when stderr is a terminal, plain lines otherwise."""
    return LiveProgress() if sys.stderr.isatty() else PlainProgress()
