"""What a replay says of the guard, for the judge."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GuardTally:
    """What the guard did on some rows.

    Attributes
    ----------
    rows : int
    fallbacks, fallback_rows : mapping reason -> int
        Times that a fallback began or was renewed, and rows that it served.
    looks : int
        Times that a person was asked.
    priming_seconds : float
        Time of bringing models up to date because of fallbacks.
    """

    rows: int
    fallbacks: Mapping[str, int]
    fallback_rows: Mapping[str, int]
    looks: int
    priming_seconds: float


@dataclass(frozen=True, kw_only=True)
class GuardRecord:
    """What the guard did in a replay.

    Attributes
    ----------
    validation, judged : GuardTally
        All rows of the slice, in bulk.
    stream : GuardTally
        Judged events one by one, where alone lateness can be told.
    seconds_per_event : float or None
        What the guard takes of its own, the models' time left out.
    examples : tuple of str
        The first fallback of each reason on judged rows, in words.
    """

    validation: GuardTally
    judged: GuardTally
    stream: GuardTally
    seconds_per_event: float | None
    examples: tuple[str, ...]
