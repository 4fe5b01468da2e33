"""Which part each column plays, guessed from its name and its values; in doubt, an error asks."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import polars as pl

from sma_pilot.errors import LogError
from sma_pilot.init.profile import ColumnProfile, Profile
from sma_pilot.logs.files import LogFile
from sma_pilot.logs.labels import EVENT, code_of
from sma_pilot.logs.reader import time_sample
from sma_pilot.logs.timestamps import fitting_forms

_ROWS_PER_ENTITY = 20
_TIME = re.compile(
    r"(?:.*[_\W\d])?(?:date_?time|time_?stamp|time|date|ts|epoch|clock)\d*(?:[_\W].*)?"
)
_BENCHMARK = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}
_ENTITY = re.compile(
    r"(?:entity|machine|host|server|device|asset|unit|node|service|equipment|instance|turbine|"
    r"vehicle|engine|robot|pump|plant|line|station)s?(?:[ _-]?(?:id|name|nr|no|number|key))?"
    r"|hostname|serial(?:[ _-]?(?:nr|no|number))?|pod|id"
)
_LABEL = re.compile(
    r"(?:.*[_\W])?(?:labels?|anomal(?:y|ous|ies)|failures?|failed|fault(?:y|s)?|outliers?|attack|"
    r"incidents?|breakdown)|(?:is|has)_?anomaly|target|class|event|abnormal"
)


@dataclass
class Parts:
    """The part of each column; a name is in one place only."""

    time: str
    entity: str | None
    label: str | None
    numeric: list[str]
    categorical: list[str]
    left_out: dict[str, str] = field(default_factory=dict)
    """Columns without a part, and why."""
    maybe_labels: list[str] = field(default_factory=list)
    """Numeric columns of 0 and 1, which might be labels."""


def guess_parts(
    profile: Profile,
    files: Sequence[LogFile],
    time: str | None,
    entity: str | None,
    label: str | None,
) -> Parts:
    """Decide the part of every column.

    Parameters
    ----------
    profile : Profile
        What the columns hold.
    files : sequence of LogFile
        Where they are.
    time, entity, label : str, optional
        What the user says; an empty text says that there is no such column.

    Raises
    ------
    LogError
        When a column that the user names is absent, or when several, or none, could be the clock,
        the machine or the label; the message names the option that settles it.
    """
    for option, name in (("--time", time), ("--entity", entity), ("--label", label)):
        if name and name not in profile.columns:
            known = _listed(profile.columns)
            raise LogError(f"{option}: no column {name!r} in every file; there are {known}")
    columns = {name: one for name, one in profile.columns.items() if one.filled}
    time = time or _guess_time(columns, files[0])
    free = {name: one for name, one in columns.items() if name != time}
    if label is None:
        free_for_label = {name: one for name, one in free.items() if name != entity}
        label = _only(_label_candidates(free_for_label), "--label", "marks failures")
    free = {name: one for name, one in free.items() if name != label}
    if entity is None:
        entity = _only(_entity_candidates(free, profile.rows), "--entity", "names the machine")
    free.pop(entity or "", None)
    parts = Parts(time, entity or None, label or None, [], [])
    for name, one in free.items():
        if _LABEL.fullmatch(name.casefold()):
            parts.left_out[name] = "is named like an answer; put it back if it is a measurement"
        else:
            _give_part(parts, name, one)
    parts.left_out |= {name: "is empty" for name, one in profile.columns.items() if not one.filled}
    parts.left_out |= dict.fromkeys(profile.partial, "is not in every file")
    for name in (parts.time, parts.entity, parts.label):
        parts.left_out.pop(name or "", None)
    if not parts.numeric:
        raise LogError(
            "no numeric channel: apart from time, entity and label no column holds numbers only "
            f"({'; '.join(f'{name!r} {why}' for name, why in list(parts.left_out.items())[:5])})"
        )
    return parts


def could_be_entities(profile: Profile, parts: Parts) -> list[str]:
    """Return the columns whose few values may name machines, whatever their name."""
    return [
        name
        for name in (*parts.categorical, *parts.numeric)
        if _repeats_enough(profile.columns[name], profile.rows)
        and not profile.columns[name].dtype.is_float()
        and len(profile.columns[name].words or ()) > 1
        and all("." not in word for word in profile.columns[name].words or ())
    ]


def _give_part(parts: Parts, name: str, one: ColumnProfile) -> None:
    if one.dtype.is_nested() or one.dtype == pl.Binary or one.dtype.is_temporal():
        parts.left_out[name] = f"holds {one.dtype} values"
    elif one.is_number:
        parts.numeric.append(name)
        if one.words is not None and {word.removesuffix(".0") for word in one.words} == {"0", "1"}:
            parts.maybe_labels.append(name)
    elif one.words is not None and {word.casefold() for word in one.words} <= _BENCHMARK:
        parts.left_out[name] = "tells a benchmark's parts apart"
    elif one.is_few:
        parts.categorical.append(name)
    else:
        parts.left_out[name] = "holds free text, or a name for nearly every row"


def _guess_time(columns: dict[str, ColumnProfile], file: LogFile) -> str:
    sure, maybe = [], []
    for name, one in columns.items():
        if one.dtype not in (pl.Datetime, pl.Date, pl.String) and not one.dtype.is_integer():
            continue
        sample = time_sample(file, name)
        if sample.null_count() == len(sample) or not fitting_forms(sample):
            continue
        # A date cannot be mistaken; a number within the range of epochs can.
        is_date = one.dtype.is_temporal() or not one.is_number
        (sure if is_date or _TIME.fullmatch(name.casefold()) else maybe).append(name)
    found = sure or maybe
    if not found:
        raise LogError(
            f"no column holds timestamps; there are {_listed(columns)}. Name the one that does "
            "with --time to learn why it cannot be read, or add one (start + row x period)"
        )
    choice = _only(found, "--time", "is the clock")
    assert choice is not None  # noqa: S101 - there is one, or `_only` raised
    return choice


def _entity_candidates(columns: dict[str, ColumnProfile], rows: int) -> list[str]:
    return [
        name
        for name, one in columns.items()
        if _ENTITY.fullmatch(name.casefold()) and _repeats_enough(one, rows)
    ]


def _repeats_enough(one: ColumnProfile, rows: int) -> bool:
    return one.words is not None and len(one.words) * _ROWS_PER_ENTITY <= rows


def _label_candidates(columns: dict[str, ColumnProfile]) -> list[str]:
    found = []
    for name, one in columns.items():
        codes = [code_of(value) for value in one.words or ()]
        means_something = None not in codes and any(
            code is not None and code >= EVENT for code in codes
        )
        if _LABEL.fullmatch(name.casefold()) and one.is_few and means_something:
            found.append(name)
    return found


def _only(found: list[str], option: str, what: str) -> str | None:
    if len(found) > 1:
        raise LogError(
            f"more than one column may be the one that {what}: {_listed(found)}; "
            f"name it with {option}"
        )
    return found[0] if found else None


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return ", ".join(repr(name) for name in names[:12]) + more
