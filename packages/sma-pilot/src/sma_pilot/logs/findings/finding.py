"""One thing found in a log, and the wording that findings share."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

Level = Literal["error", "warning", "info"]
LEVELS: tuple[Level, ...] = ("error", "warning", "info")
DAY_NS = 86_400 * 10**9
MUCH = 0.01
"""Share of rows from which an oddity is worth a warning."""
MOST = 0.5
_NAMED = 5


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Parameters
    ----------
    level : {"error", "warning", "info"}
        error: the pilot cannot run or its verdict would mean nothing; warning: look at it before
        you trust a verdict; info: good to know.
    topic : str
        schema, clock, order, slices, channels, labels, leakage or proof.
    message : str
        What was found, where, and how to mend it.
    """

    level: Level
    topic: str
    message: str


def listed(names: list[str], *, quote: bool = False) -> str:
    """List the first few names, and how many there are besides."""
    shown = ", ".join(repr(name) if quote else name for name in names[:_NAMED])
    more = len(names) - _NAMED
    return f"{shown} and {more} more" if more > 0 else shown


def counted(number: int, one: str, many: str | None = None) -> str:
    """Write a number with its noun."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def share_of(part: int, whole: int) -> str:
    """Write a count, and which share of the whole it is."""
    return f"{part:,} ({100 * part / whole:.3g} %)" if part and whole else f"{part:,}"


def lasting(time: int) -> str:
    """Write a time in ns in the unit that fits it."""
    units = (("d", DAY_NS), ("h", 3600 * 10**9), ("min", 60 * 10**9), ("s", 10**9), ("ms", 10**6))
    for unit, size in units:
        if time >= size:
            return f"{time / size:.3g} {unit}"
    return f"{timedelta(microseconds=time / 1000)}"
