"""Tables ``log.lines`` and ``log.text``: plain lines as columns, and free text as templates."""

import re
from typing import Annotated, Literal, Self

import polars as pl
from pydantic import AfterValidator, Field, model_validator

from sma_pilot.plan.values import Section

MASKS = {
    "ip": ("IP", r"\b(?:\d{1,3}\.){3}\d{1,3}(?::\d{1,5})?\b"),
    "hex": ("HEX", r"\b0[xX][0-9a-fA-F]+\b"),
    "number": ("NUM", r"\b\d+(?:\.\d+)?\b"),
}
"""Masks by the name that a plan may give: what stands in the place, and what it replaces."""


def _readable(pattern: str) -> str:
    """Refuse a pattern that the regular expressions of Python and of polars do not both read."""
    try:
        re.compile(pattern)
        pl.Series([""]).str.contains(pattern)
    except (re.error, pl.exceptions.PolarsError) as error:
        reason = str(error).split("\n")
        told = reason[-1] if reason[0].startswith("regex error") else reason[0]
        raise ValueError(
            f"{pattern!r} is no regular expression that is read here: {told}"
        ) from error
    return pattern


Pattern = Annotated[str, Field(min_length=1), AfterValidator(_readable)]


class LineFormat(Section):
    """Table ``log.lines``: how the lines of plain files (.log, .txt) become columns."""

    pattern: Pattern
    """Regular expression with named groups, ``(?P<name>...)``: each group is a column."""
    time_format: Annotated[str, Field(min_length=1)] | None = None
    """Form of the timestamp, such as ``%y%m%d %H%M%S``; None: one of those that CSV may have."""
    unparsed_limit: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.01
    """Largest share of lines that may lack the pattern or the timestamp; blank ones count not."""

    @model_validator(mode="after")
    def _has_columns(self) -> Self:
        if not self.columns:
            raise ValueError("pattern: no group has a name; write (?P<time>...), (?P<message>...)")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the groups, in their order."""
        return tuple(re.compile(self.pattern).groupindex)


class Mask(Section):
    """A rule of one's own: what of a text is no part of its template."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,32}$")]
    """Stands in the place, between ``<`` and ``>``."""
    pattern: Pattern


class TextSource(Section):
    """Table ``log.text``: the column of free text whose templates are the events of a log."""

    column: str
    session: Pattern | None = None
    """Regular expression whose first group names the session, in place of ``log.entity``."""
    masks: tuple[Literal["ip", "hex", "number"] | Mask, ...] = ("ip", "hex", "number")
    """Replaced in this order before templates are mined."""
    similarity: Annotated[float, Field(gt=0.0, le=1.0)] = 0.4
    """Share of equal words from which on a line belongs to a template."""
    depth: Annotated[int, Field(ge=3, le=32)] = 4
    """Depth of the search tree: its first ``depth - 3`` words a line must share with a template."""
    children: Annotated[int, Field(ge=2, le=10_000)] = 100
    """Most branches of a node of that tree."""

    @model_validator(mode="after")
    def _session_has_a_group(self) -> Self:
        if self.session is not None and re.compile(self.session).groups < 1:
            raise ValueError(
                "session: put what names the session in brackets, such as (blk_-?\\d+)"
            )
        return self

    @property
    def rules(self) -> tuple[tuple[str, str], ...]:
        """What stands in place of each mask, and the pattern that it replaces."""
        return tuple(
            MASKS[mask] if isinstance(mask, str) else (mask.name, mask.pattern)
            for mask in self.masks
        )
