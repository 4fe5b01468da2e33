"""The values that a plan is written in: durations, moments and tables."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")


def parse_duration(value: object) -> timedelta:
    """Read ``"90s"``, ``"1.5h"``, ``"250ms"``, ``"2d"``: a number and one of ms, s, m, h, d."""
    if isinstance(value, timedelta):
        return value
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError('a duration is a number and a unit in quotes, such as "5m" or "250ms"')
    duration = timedelta(seconds=float(match[1]) * _UNITS[match[2]])
    if duration <= timedelta(0):
        raise ValueError("a duration must be longer than zero")
    # What the frozen plan could not say would let two plans share a fingerprint.
    if duration % timedelta(milliseconds=1):
        raise ValueError("a duration is a whole number of milliseconds")
    return duration


def format_duration(duration: timedelta) -> str:
    """Write a duration in the largest unit that holds it as a whole number."""
    milliseconds = round(duration / timedelta(milliseconds=1))
    for unit, seconds in reversed(_UNITS.items()):
        size = round(seconds * 1000)
        if milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    raise AssertionError("unreachable: a millisecond divides every duration")


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


Duration = Annotated[
    timedelta, BeforeValidator(parse_duration), PlainSerializer(format_duration, return_type=str)
]
Moment = Annotated[datetime, AfterValidator(_utc)]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]


class Section(BaseModel):
    """A table of the plan: frozen, and strict about names so that a typing slip is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ArmSection(Section):
    """What every kind of arm has: a name that readers know, and tasks that it can do."""

    words: ClassVar[str] = ""
    tasks: ClassVar[tuple[str, ...]] = ()
    """Kinds of task that it can do; empty: all."""
    simple: bool = False
    """Whether it counts as a simple method, which is worth a recommendation if it does as well."""

    @property
    def title(self) -> str:
        """What a reader calls it."""
        return self.words
