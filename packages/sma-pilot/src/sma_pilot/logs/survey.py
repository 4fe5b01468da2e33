"""A first look at a log: one pass over clock, machine and label, in bounded memory."""

from dataclasses import dataclass, field

import polars as pl

from sma_pilot.errors import LogError
from sma_pilot.logs.files import LINE, LogFile
from sma_pilot.logs.labels import (
    MAX_CLASSES,
    LabelCoding,
    class_coding,
    code_of,
    decide_coding,
    why_no_label,
)

TIME, ENTITY, LABEL, ORDER = "time", "entity", "label", "row"
_EXAMPLES, _LONGEST = 3, 120


@dataclass(frozen=True)
class EntitySpan:
    """What a first look tells about one machine: its rows, and its first and last time in ns."""

    rows: int
    first: int
    last: int


@dataclass
class Survey:
    """What one pass over clock, machine and label tells.

    Parameters
    ----------
    rows : int
        Rows read, all files.
    rows_by_file : dict of str to int
        The same for each file.
    lines_unparsed : int
        Plain lines that have not the plan's pattern or no timestamp; left out.
    unparsed_examples : list of str
        The first of them, with file and number.
    without_time, without_entity : int
        Rows that cannot be placed, and are left out.
    out_of_order : int
        Rows older than an earlier row of the same machine and file.
    entities : dict of str to EntitySpan
        By name, sorted.
    coding : LabelCoding or None
        What label values mean; None without a label column.
    """

    rows: int = 0
    rows_by_file: dict[str, int] = field(default_factory=dict)
    lines_unparsed: int = 0
    unparsed_examples: list[str] = field(default_factory=list)
    without_time: int = 0
    without_entity: int = 0
    out_of_order: int = 0
    entities: dict[str, EntitySpan] = field(default_factory=dict)
    coding: LabelCoding | None = None

    @property
    def first(self) -> int:
        """Earliest time of the log, ns."""
        return min(span.first for span in self.entities.values())

    @property
    def last(self) -> int:
        """Latest time of the log, ns."""
        return max(span.last for span in self.entities.values())


class SurveyTaker:
    """Takes a survey batch by batch; `survey` is good after any number of batches.

    Parameters
    ----------
    has_label : bool
        Whether the log has a label column.
    by_class : bool
        Whether its values are classes.
    """

    def __init__(self, *, has_label: bool, by_class: bool = False) -> None:
        self._survey = Survey()
        self._has_label = has_label
        self._by_class = by_class
        self._labels: set[str] = set()
        self._spans: pl.DataFrame | None = None
        self._newest: pl.DataFrame | None = None  # of each entity, in this file so far

    @property
    def rows(self) -> int:
        """Rows added by now."""
        return self._survey.rows

    @property
    def survey(self) -> Survey:
        """What is known by now."""
        if self._has_label:
            decide = class_coding if self._by_class else decide_coding
            self._survey.coding = decide(self._labels)
        if self._spans is not None:
            self._survey.entities = {
                name: EntitySpan(rows, first, last)
                for name, rows, first, last in self._spans.sort(ENTITY).iter_rows()
            }
        return self._survey

    def add_unparsed(self, file_name: str, lines: pl.DataFrame) -> None:
        """Count plain lines that do not parse: ``row`` from 0, and ``line``, the line itself."""
        survey = self._survey
        survey.rows += lines.height
        survey.rows_by_file[file_name] = survey.rows_by_file.get(file_name, 0) + lines.height
        survey.lines_unparsed += lines.height
        missing = _EXAMPLES - len(survey.unparsed_examples)
        for row, line in lines.select(ORDER, LINE).head(missing).iter_rows():
            shown = line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."
            survey.unparsed_examples.append(f"{file_name}: line {row + 1}: {shown!r}")

    def add(self, file_name: str, batch: pl.DataFrame) -> None:
        """Add the next rows of a file: ``time`` in ns and ``entity``, null where absent."""
        survey = self._survey
        if file_name not in survey.rows_by_file:
            survey.rows_by_file[file_name] = 0
            self._newest = None
        survey.rows += batch.height
        survey.rows_by_file[file_name] += batch.height
        survey.without_time += batch[TIME].null_count()
        survey.without_entity += batch[ENTITY].null_count()
        placed = batch.drop_nulls([TIME, ENTITY]).select(ENTITY, TIME)
        survey.out_of_order += _late_rows(placed, self._newest)
        seen = placed.group_by(ENTITY).agg(
            pl.len().cast(pl.Int64).alias("rows"),
            pl.col(TIME).min().alias("first"),
            pl.col(TIME).max().alias("last"),
        )
        self._newest = _merge_spans(self._newest, seen)
        self._spans = _merge_spans(self._spans, seen)

    def add_labels(self, file: LogFile, column: str, batch: pl.DataFrame) -> None:
        """Collect the label's values, as text; refuse one that means nothing."""
        new = set(batch[LABEL].drop_nulls().unique()) - self._labels
        for value in sorted(new):
            if self._by_class:
                break
            if code_of(value) is None:
                row = batch.filter(pl.col(LABEL) == value)[ORDER][0]
                raise LogError(f"{file.place(column, row)} {why_no_label(value)}")
        self._labels |= new
        if self._by_class and len(self._labels) > MAX_CLASSES:
            raise LogError(
                f"{file.name}: column {column!r} has more than {MAX_CLASSES} distinct values, so "
                "it names rows rather than classes; name another one in log.class_label"
            )


def _late_rows(rows: pl.DataFrame, newest: pl.DataFrame | None) -> int:
    """Count rows that are older than an earlier row of their entity."""
    before = pl.col(TIME).cum_max().shift(1).over(ENTITY)
    if newest is not None:
        last = newest.select(ENTITY, "last")
        rows = rows.join(last, on=ENTITY, how="left", maintain_order="left")
        before = pl.max_horizontal(before, "last")
    return rows.select((pl.col(TIME) < before).sum()).item()


def _merge_spans(spans: pl.DataFrame | None, seen: pl.DataFrame) -> pl.DataFrame:
    if spans is None:
        return seen
    return (
        pl.concat([spans, seen])
        .group_by(ENTITY)
        .agg(pl.col("rows").sum(), pl.col("first").min(), pl.col("last").max())
    )
