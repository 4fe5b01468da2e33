"""The label column: bool, number or word, read as -1 unknown, 0 normal, 1 and above an event.

A column of classes is read as -1 unknown, and the number of the class from 0 on.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from sma_pilot.errors import LogError

UNKNOWN, NORMAL, EVENT = -1, 0, 1
MAX_KINDS = 100
MAX_CLASSES = 100

_NORMAL_WORDS = "normal ok okay good healthy nominal regular benign none no false n"
_EVENT_WORDS = "anomaly anomalous abnormal failure failed fail fault faulty broken error alarm bad "
_EVENT_WORDS += "attack event yes true y"
_UNKNOWN_WORDS = "unknown unlabeled unlabelled ?"
WORDS: dict[str, int] = {
    **dict.fromkeys(_NORMAL_WORDS.split(), NORMAL),
    **dict.fromkeys(_EVENT_WORDS.split(), EVENT),
    **dict.fromkeys(_UNKNOWN_WORDS.split(), UNKNOWN),
}


@dataclass(frozen=True)
class LabelCoding:
    """What each value of the label column means, decided over the whole log.

    Parameters
    ----------
    codes : mapping of str to int
        Code of each value that occurs, as text.
    null_code : int
        Code of a missing value. Where the log also writes "normal", silence is unknown (a stretch
        that nobody labelled). Where it only ever writes events, silence is normal.
    """

    codes: Mapping[str, int]
    null_code: int

    def read(self, column: pl.Expr) -> pl.Expr:
        """Return a column of texts as Int32 codes."""
        known = column.replace_strict(
            list(self.codes), list(self.codes.values()), default=None, return_dtype=pl.Int32
        )
        return known.fill_null(self.null_code)

    def to_dict(self) -> dict[str, Any]:
        """Return the coding for provenance."""
        return {"codes": dict(self.codes), "missing": self.null_code}


def decide_coding(values: Iterable[str]) -> LabelCoding:
    """Decide the coding from all distinct values of the column.

    Parameters
    ----------
    values : iterable of str
        Every distinct value but null, as text: ``"0"``, ``"1.0"``, ``"true"``, ``"failure"``.

    Raises
    ------
    LogError
        Naming the first value that is neither a whole number from 0 to 100 nor a known word.
    """
    known: dict[str, int] = {}
    for value in sorted(values):
        code = code_of(value)
        if code is None:
            raise LogError(f"label value {value!r} {why_no_label(value)}")
        known[value] = code
    events_only = NORMAL not in known.values() and any(code >= EVENT for code in known.values())
    return LabelCoding(known, NORMAL if events_only else UNKNOWN)


def class_coding(values: Iterable[str]) -> LabelCoding:
    """Give the values of a column of classes numbers: whole ones first, by size, then words."""

    def place(value: str) -> tuple[bool, int, str]:
        number = value.removeprefix("-").isdecimal()
        return not number, int(value) if number else 0, value

    return LabelCoding({value: n for n, value in enumerate(sorted(values, key=place))}, UNKNOWN)


def code_of(value: str) -> int | None:
    """Return the code of one label value, None if it has none."""
    text = value.strip().casefold()
    if text in ("", "nan", "null"):
        return UNKNOWN
    if text in WORDS:
        return WORDS[text]
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number.is_integer() and 0 <= number <= MAX_KINDS else None


def why_no_label(value: str) -> str:
    """Return the end of an error's sentence about a value without a code."""
    if value.strip() in ("-1", "-1.0"):
        return "has two customary meanings (an outlier, or unlabelled); write 1 or leave it empty"
    return (
        f"is no label: write 0 for normal and 1 (or a kind's number up to {MAX_KINDS}) for an "
        f"event, true/false, or one of {', '.join(sorted(WORDS))}; leave unlabelled rows empty"
    )
