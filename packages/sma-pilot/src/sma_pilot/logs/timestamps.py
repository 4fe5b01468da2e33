"""Timestamps of any customary form, read as ns since 1970-01-01 UTC.

The form is decided once, from the heads of all files, and every value must then have it:

* a datetime column is taken as it is, in UTC unless it carries a zone;
* a number is an epoch in the one unit (s, ms, us, ns) that puts it between 1980 and 2100; the four
  ranges do not overlap;
* a text is ISO 8601 or one of the forms below, with or without fraction and zone. Day and month of
  ``03/04/2024`` are told apart by the other values; if none tells, that is an error, not a guess.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product

import polars as pl

from sma_pilot.errors import LogError

_EARLIEST = datetime(1980, 1, 1, tzinfo=UTC).timestamp()
_LATEST = datetime(2100, 1, 1, tzinfo=UTC).timestamp()
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}

_DAYS = ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%Y%m%d")
_TIMES = ("T%H:%M:%S%.f", " %H:%M:%S%.f", "T%H:%M", " %H:%M", " %I:%M:%S %p")
_TEXT_FORMS = (
    *(day + time + zone for day, time, zone in product(_DAYS, _TIMES, ("", "%#z", " UTC"))),
    *_DAYS,
    "%Y%m%d%H%M%S",
)
_AMBIGUOUS = ("%m/%d/%Y", "%d/%m/%Y")
_HELD_BY_64_BITS = (pl.lit(datetime(1678, 1, 1)), pl.lit(datetime(2262, 1, 1)))


@dataclass(frozen=True)
class TimeForm:
    """One decided form: ``datetime``, ``epoch s|ms|us|ns``, or a text format."""

    name: str

    def read(self, column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
        """Return `column` as Int64 ns; null where a value has not this form.

        Parameters
        ----------
        column : polars.Expr
            The raw column.
        dtype : polars.DataType
            Its type.
        """
        if self.name == "datetime":
            if dtype == pl.Datetime and dtype.time_zone is not None:  # pyright: ignore[reportAttributeAccessIssue]
                column = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
            return _nanoseconds(column.cast(pl.Datetime("us"), strict=False), column)
        if self.name.startswith("epoch "):
            return _read_epoch(column, self.name.removeprefix("epoch "), dtype)
        text = column.str.strip_chars()
        rough = text.str.to_datetime(self.name, time_unit="us", strict=False)
        exact = text.str.to_datetime(self.name, time_unit="ns", strict=False)
        if "%#z" in self.name:  # polars gives UTC
            rough, exact = rough.dt.replace_time_zone(None), exact.dt.replace_time_zone(None)
        return _nanoseconds(rough, exact)


def _nanoseconds(rough: pl.Expr, exact: pl.Expr) -> pl.Expr:
    """Return `exact` in ns where `rough`, of a wider range, says that 64 bits hold it.

    Years such as 1 and 9999, which stand for "no date" in many a database, would wrap around.
    """
    inside = rough.is_between(*_HELD_BY_64_BITS)
    return pl.when(inside).then(exact.cast(pl.Datetime("ns"), strict=False).cast(pl.Int64))


def _read_epoch(column: pl.Expr, unit: str, dtype: pl.DataType) -> pl.Expr:
    scale = _PER_SECOND[unit]
    factor = 10**9 // scale
    if dtype.is_integer():
        number = column.cast(pl.Int64, strict=False)
        whole = number * factor
    else:
        if dtype == pl.String:
            column = column.str.strip_chars()
        number = column.cast(pl.Float64, strict=False)
        # A float64 holds an epoch in seconds to within a microsecond: the rest is noise.
        rounded = (number * (factor / 1000)).round().cast(pl.Int64, strict=False) * 1000
        exact = column.cast(pl.Int64, strict=False) * factor
        whole = pl.coalesce(exact, rounded) if dtype == pl.String else rounded
    return pl.when(number.is_between(_EARLIEST * scale, _LATEST * scale)).then(whole)


def decide_forms(samples: Mapping[str, pl.Series], column: str) -> dict[str, TimeForm]:
    """Decide the form of the time column in each file.

    Parameters
    ----------
    samples : mapping of file name to polars.Series
        The first values of the column in each file, nulls included.
    column : str
        Its name, for errors.

    Returns
    -------
    dict of file name to TimeForm
        Forms may differ between files (Parquet beside CSV), but day-first and month-first dates
        never mix.

    Raises
    ------
    LogError
        When no form fits a file's values, or day and month cannot be told apart.
    """
    forms: dict[str, TimeForm] = {}
    open_choices: dict[str, list[TimeForm]] = {}
    for name, sample in samples.items():
        fitting = fitting_forms(sample)
        if not fitting:
            raise LogError(f"{name}: column {column!r}: {_why_no_form(sample)}")
        open_choices[name] = fitting
        forms[name] = fitting[0]
    # A file that shows which of day and month comes first decides for the files that do not.
    orders = {}
    for name, choices in open_choices.items():
        days = {day for day in _AMBIGUOUS for form in choices if form.name.startswith(day)}
        if len(days) == 1:
            orders[days.pop()] = name
    if len(orders) == 2:
        first, second = orders.values()
        raise LogError(
            f"{first} and {second}: column {column!r}: one writes the day first, the other the "
            "month; write dates as YYYY-MM-DD"
        )
    for name, choices in open_choices.items():
        if any(form.name.startswith(_AMBIGUOUS) for form in choices):
            if not orders:
                raise LogError(
                    f"{name}: column {column!r}: day and month cannot be told apart in "
                    f"{_first(samples[name])!r}; write dates as YYYY-MM-DD"
                )
            forms[name] = next(form for form in choices if form.name.startswith(tuple(orders)))
    return forms


def is_ambiguous(sample: pl.Series) -> bool:
    """Tell whether `sample` reads as day-first and as month-first dates alike."""
    days = {day for f in fitting_forms(sample) for day in _AMBIGUOUS if f.name.startswith(day)}
    return len(days) == len(_AMBIGUOUS)


def tells_day_from_month(column: pl.Expr) -> pl.Expr:
    """Tell where a date such as ``03/25/2024`` has a number over 12, which can be a day only."""
    numbers = [column.str.extract(rf"^\s*(?:\d+/){{{i}}}(\d+)/").cast(pl.Int64) for i in (0, 1)]
    return pl.any_horizontal(number > 12 for number in numbers)


def fitting_forms(sample: pl.Series) -> list[TimeForm]:
    """Return every form that reads all values of `sample`; none for a sample of nulls only."""
    dtype = sample.dtype
    values = (sample.fill_nan(None) if dtype.is_float() else sample).drop_nulls()
    if values.is_empty():
        # Nothing to decide and nothing to misread: any form leaves nulls null.
        return [TimeForm("datetime" if dtype.is_temporal() else "epoch s")]
    if dtype in (pl.Datetime, pl.Date):
        return [TimeForm("datetime")]
    if dtype.is_numeric():
        names = [f"epoch {unit}" for unit in _PER_SECOND]
    elif dtype == pl.String:
        names = [*(f"epoch {unit}" for unit in _PER_SECOND), *_TEXT_FORMS]
    else:
        return []
    frame = values.to_frame("value")
    for part in (frame.head(1), frame):  # nearly all forms fail at the first value
        reads = [TimeForm(name).read(pl.col("value"), dtype).alias(name) for name in names]
        missed = part.select(reads).null_count().row(0, named=True)
        names = [name for name, count in missed.items() if count == 0]
    return [TimeForm(name) for name in names]


def _first(sample: pl.Series) -> object:
    return sample.drop_nulls().first()


def _why_no_form(sample: pl.Series) -> str:
    value = _first(sample)
    if sample.dtype.is_numeric() or (isinstance(value, str) and value.strip().isdigit()):
        return (
            f"{value} is no epoch: in none of s, ms, us, ns does the column lie between 1980 and "
            "2100. For a counter of rows, add a timestamp column to the log (start + row x period)"
        )
    if sample.dtype == pl.String:
        # Some values may be fine: name one that is not, rather than the first.
        column = pl.col("value")
        fits = [TimeForm(name).read(column, sample.dtype).is_not_null() for name in _TEXT_FORMS]
        frame = sample.drop_nulls().to_frame("value")
        bad = frame.filter(~pl.any_horizontal(fits))["value"].first()
        if bad is not None:
            return f"{bad!r} is no timestamp that is known here; write YYYY-MM-DD HH:MM:SS"
        return f"timestamps of different forms are mixed, the first is {value!r}; write one form"
    return f"holds {sample.dtype} values, which are no timestamps"
