"""Which columns of the files play which part: the plan's names and patterns, resolved."""

import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from sma_pilot.errors import LogError
from sma_pilot.logs.files import LogFile
from sma_pilot.plan import LogSource

_SHOWN = 12


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a log, by part; channels in the order of the files' columns."""

    time: str
    entity: str | None
    label: str | None
    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    by_class: bool = False
    """Whether the label is a class and not an event."""
    text: str | None = None
    """Column of free text, whose templates are the last categorical channel."""


def resolve_columns(log: LogSource, files: Sequence[LogFile]) -> Columns:
    """Resolve the plan's names and patterns; every file must give the same answer.

    A name that is a column stands for that column alone, whatever glob characters it holds
    (``temp [C]``). Names claim their columns before patterns do, so ``numeric = ["*"]`` beside
    ``categorical = ["mode"]`` means all the others.

    Raises
    ------
    LogError
        When a column is missing, matched by nothing, claimed twice, of a type that cannot play
        its part, or when two files differ in the columns the plan asks for.
    """
    first = _resolve(log, files[0])
    for file in files[1:]:
        other = _resolve(log, file)
        if other == first:
            continue
        here = {*first.numeric, *first.categorical}
        there = {*other.numeric, *other.categorical}
        # Another order of the same columns is no difference: columns are read by name.
        if here != there:
            missing = sorted(here - there)
            name, lacks, has = (
                (missing[0], file, files[0]) if missing else (min(there - here), files[0], file)
            )
            raise LogError(
                f"{lacks.name}: column {name!r} is missing; {has.name} has it. All files of a "
                "log need the same channels: drop the column from log.numeric or "
                "log.categorical, or mend the file"
            )
    return first


def _resolve(log: LogSource, file: LogFile) -> Columns:
    names = list(file.dtypes)
    answer, label = log.answer
    text = None if log.text is None else log.text.column
    roles = {"time": log.time, "entity": log.entity, answer: label, "text.column": text}
    for role, column in roles.items():
        if column is not None and column not in file.dtypes:
            raise LogError(f"{file.name}: log.{role}: no column {column!r}; {hint(column, names)}")
    # The machine's name may be a channel too; the clock and the answer may not.
    taken = {column: f"log.{role}" for role, column in roles.items() if role != "entity" and column}
    parts = {"log.numeric": log.numeric, "log.categorical": log.categorical}
    claims: dict[str, str] = {}
    for part, patterns in parts.items():
        for name in patterns:
            if name not in file.dtypes:
                continue
            other = taken.get(name) or claims.get(name)
            if other not in (None, part):
                raise LogError(f"{part}: column {name!r} is {other} already; it can be one only")
            claims[name] = part
    free = [name for name in names if name not in claims and name not in roles.values()]
    for part, patterns in parts.items():
        for pattern in patterns:
            if pattern in file.dtypes:
                continue
            matches = fnmatch.filter(free, pattern)
            earlier = [name for name in fnmatch.filter(names, pattern) if name in claims]
            if not matches and not earlier:
                what = "pattern" if any(c in pattern for c in "*?[") else "column"
                raise LogError(
                    f"{file.name}: {part}: no column matches {what} {pattern!r}; "
                    f"{hint(pattern, names)}"
                )
            claims |= {name: claims.get(name, part) for name in matches}
            free = [name for name in free if name not in claims]
    _check_types(claims, file.dtypes, file.name)
    if text is not None and file.dtypes[text] != pl.String:
        raise LogError(
            f"{file.name}: log.text.column: column {text!r} holds {file.dtypes[text]} values, and "
            "no text; name another one"
        )
    return Columns(
        time=log.time,
        entity=log.entity,
        label=label,
        numeric=tuple(name for name in names if claims.get(name) == "log.numeric"),
        categorical=(
            *(name for name in names if claims.get(name) == "log.categorical"),
            *([] if text is None else [text]),
        ),
        by_class=log.class_label is not None,
        text=text,
    )


def _check_types(
    claims: Mapping[str, str], dtypes: Mapping[str, pl.DataType], file_name: str
) -> None:
    for name, part in claims.items():
        dtype = dtypes[name]
        numeric = dtype.is_numeric() or dtype in (pl.Boolean, pl.String, pl.Null)
        opaque = dtype.is_nested() or dtype in (pl.Binary, pl.Duration, pl.Object)
        if opaque or (part == "log.numeric" and not numeric):
            kind = "numeric" if part == "log.numeric" else "categorical"
            raise LogError(
                f"{file_name}: column {name!r} holds {dtype} values and cannot be {kind}; "
                f"leave it out of {part}"
            )


def hint(wanted: str, names: Iterable[str]) -> str:
    """Return which columns there are, and which of them may have been meant."""
    names = list(names)
    folded = {name.casefold(): name for name in names}
    close = difflib.get_close_matches(wanted.casefold(), folded, n=1)
    listed = ", ".join(repr(name) for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    meant = f"did you mean {folded[close[0]]!r}? " if close else ""
    return f"{meant}there are {listed}{more}"
