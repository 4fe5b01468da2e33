"""Raw files as one canonical table: typed, named by part, faults told by file, column and row."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import polars as pl

from sma_pilot.errors import LogError
from sma_pilot.logs.cells import is_filled, number, word
from sma_pilot.logs.columns import Columns, resolve_columns
from sma_pilot.logs.files import LINE, ROW, LogFile, open_files
from sma_pilot.logs.labels import UNKNOWN
from sma_pilot.logs.survey import ENTITY, LABEL, ORDER, TIME, Survey, SurveyTaker
from sma_pilot.logs.timestamps import (
    TimeForm,
    decide_forms,
    is_ambiguous,
    tells_day_from_month,
)
from sma_pilot.plan import LogSource
from sma_pilot.progress import OnProgress

FILE, FAULT = "file", "fault"
ONLY_ENTITY = "log"
"""Name of the one machine of a log without an entity column."""
_HEAD_ROWS = 1000
# A batch in flight; polars holds a few of them at a time.
_BATCH_BYTES = 16 * 2**20
_KEY_BYTES = 64
_TEXT_BYTES = 200


class LogReader:
    """The files of a log, opened: columns resolved, form of the clock decided, nothing loaded.

    Parameters
    ----------
    log : LogSource
        The plan's description of the log.
    data_dir : Path
        Where its relative paths start.

    Raises
    ------
    LogError
        See `open_files`, `resolve_columns`, `decide_forms`.
    """

    def __init__(self, log: LogSource, data_dir: Path) -> None:
        self._log = log
        self.files: list[LogFile] = open_files(log.files, data_dir, log.lines)
        self.stamps = self.take_stamps()
        self.columns: Columns = resolve_columns(log, self.files)
        declared = None if log.lines is None else log.lines.time_format
        plain = [f for f in self.files if f.format == "lines" and declared is not None]
        samples = {f.name: time_sample(f, log.time) for f in self.files if f not in plain}
        self.time_forms: dict[str, TimeForm] = decide_forms(samples, log.time)
        self.time_forms |= {file.name: TimeForm(declared or "") for file in plain}

    @property
    def numeric_names(self) -> list[str]:
        """Canonical names of the numeric channels: by position, so that none can collide."""
        return [f"n{i}" for i in range(len(self.columns.numeric))]

    @property
    def categorical_names(self) -> list[str]:
        """Canonical names of the categorical channels."""
        return [f"c{i}" for i in range(len(self.columns.categorical))]

    @property
    def row_bytes(self) -> int:
        """Rough size of a canonical row in memory."""
        words = 24 * (1 + len(self.columns.categorical))
        text = 0 if self.columns.text is None else _TEXT_BYTES
        return 8 * (5 + len(self.columns.numeric)) + words + text

    def take_stamps(self) -> dict[str, tuple[int, int]]:
        """Return size and time of last change of each file, to tell a log that changes."""
        stats = {file.name: file.path.stat() for file in self.files}
        return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}

    @cached_property
    def survey(self) -> Survey:
        """One pass over time, entity and label of all rows; see `take_survey`."""
        return self.take_survey()

    def take_survey(self, on_progress: OnProgress | None = None) -> Survey:
        """Pass once over time, entity and label of all rows, in bounded memory.

        Raises
        ------
        LogError
            For a time or label that cannot be read, for more plain lines that do not parse than
            the plan allows, and for a log without a usable row.
        """
        if "survey" in vars(self):
            return self.survey
        columns = self.columns
        taker = SurveyTaker(has_label=columns.label is not None, by_class=columns.by_class)
        for index, file in enumerate(self.files):
            plain = file.format == "lines"
            keys = file.scan().select(
                self._time(index).alias(TIME),
                self._entity(index).alias(ENTITY),
                self._label(index).alias(LABEL),
                pl.col(ROW).alias(ORDER),
                is_filled(file, self.columns.time).alias(FAULT),
                *([pl.col(LINE)] if plain else []),
            )
            for batch in stream(file, keys, _TEXT_BYTES if plain else _KEY_BYTES):
                if plain:
                    taker.add_unparsed(file.name, batch.filter(pl.col(TIME).is_null()))
                    batch = batch.filter(pl.col(TIME).is_not_null()).drop(LINE)
                unread = batch.filter(pl.col(TIME).is_null() & pl.col(FAULT))
                if unread.height:
                    form = self.time_forms[file.name].name
                    raise LogError(
                        f"{file.place(self.columns.time, unread[ORDER][0])} is no timestamp of "
                        f"the form {form!r} that the file begins with; mend it or drop the row"
                    )
                if self.columns.label is not None:
                    taker.add_labels(file, self.columns.label, batch)
                taker.add(file.name, batch)
                if on_progress is not None:
                    on_progress("look at log", taker.rows, None)
        self.survey = survey = taker.survey
        self._refuse_unparsed(survey)
        if not survey.entities:
            names = ", ".join(file.name for file in self.files[:3])
            raise LogError(f"the log has no row with a time and an entity (read {names} ...)")
        return survey

    def _refuse_unparsed(self, survey: Survey) -> None:
        lines = self._log.lines
        if lines is None or survey.lines_unparsed <= lines.unparsed_limit * survey.rows:
            return
        form = lines.time_format or "that the first lines have"
        raise LogError(
            f"{survey.lines_unparsed} of {survey.rows} lines lack log.lines.pattern or a timestamp "
            f"of the form {form}, more than log.lines.unparsed_limit ({lines.unparsed_limit:g}): "
            + "; ".join(survey.unparsed_examples)
            + ". Mend the pattern or log.lines.time_format, or raise the limit"
        )

    def scan(self, index: int) -> pl.LazyFrame:
        """Scan file `index` as canonical rows in the file's order.

        Returns
        -------
        polars.LazyFrame
            ``time`` Int64 ns UTC, ``entity`` String, ``label`` Int32, ``file`` Int32, ``row``
            Int64, numeric channels Float64 (null or NaN: missing), categorical channels String,
            and ``fault`` Int32: which numeric channel holds a text that is no number. Rows that
            lack a time or an entity are left out.
        """
        file, columns, coding = self.files[index], self.columns, self.survey.coding
        label = pl.lit(UNKNOWN, pl.Int32) if coding is None else coding.read(self._label(index))
        numbers = [number(file, name) for name in columns.numeric]
        words = [self._word(file, name) for name in columns.categorical]
        faults = [
            pl.when(value.is_null() & is_filled(file, name)).then(pl.lit(i, pl.Int32))
            for i, (name, value) in enumerate(zip(columns.numeric, numbers, strict=True))
            if file.dtypes[name] == pl.String
        ]
        return (
            file.scan()
            .select(
                self._time(index).alias(TIME),
                self._entity(index).alias(ENTITY),
                label.alias(LABEL),
                pl.lit(index, pl.Int32).alias(FILE),
                pl.col(ROW).cast(pl.Int64).alias(ORDER),
                *(value.alias(f"n{i}") for i, value in enumerate(numbers)),
                *(text.alias(f"c{i}") for i, text in enumerate(words)),
                (pl.coalesce(faults) if faults else pl.lit(None, pl.Int32)).alias(FAULT),
            )
            .filter(pl.col(TIME).is_not_null(), pl.col(ENTITY).is_not_null())
        )

    def batches(self) -> Iterator[pl.DataFrame]:
        """Read all rows once, file after file, in batches of bounded size; see `scan`.

        Raises
        ------
        LogError
            For a numeric channel that holds a text, naming file, column and row.
        """
        for index, file in enumerate(self.files):
            for batch in stream(file, self.scan(index), self.row_bytes):
                faulty = batch.filter(pl.col(FAULT).is_not_null())
                if faulty.height:
                    row = faulty.row(0, named=True)
                    column = self.columns.numeric[row[FAULT]]
                    raise LogError(
                        f"{file.place(column, row[ORDER])} is no number; mend the value, leave "
                        "it empty, or take the column out of log.numeric"
                    )
                yield batch.drop(FAULT)

    def _time(self, index: int) -> pl.Expr:
        file = self.files[index]
        column = self.columns.time
        return self.time_forms[file.name].read(file.column(column), file.dtypes[column])

    def _entity(self, index: int) -> pl.Expr:
        column, text = self.columns.entity, self._log.text
        if column is None and text is not None and text.session is not None:
            return word(self.files[index], text.column).str.extract(text.session, 1)
        return pl.lit(ONLY_ENTITY) if column is None else word(self.files[index], column)

    def _word(self, file: LogFile, column: str) -> pl.Expr:
        """Read a categorical channel; of a text, what is left of it when it is masked."""
        text = word(file, column)
        if self._log.text is None or column != self.columns.text:
            return text
        for name, pattern in self._log.text.rules:
            text = text.str.replace_all(pattern, f"<{name}>")
        return text

    def _label(self, index: int) -> pl.Expr:
        column = self.columns.label
        if column is None:
            return pl.lit(None, pl.String)
        text = word(self.files[index], column)
        # A whole number that one file writes as 2 and another as 2.0 is one class.
        return text.str.replace(r"^(-?\d+)\.0+$", "${1}") if self.columns.by_class else text


def stream(file: LogFile, frame: pl.LazyFrame, row_bytes: int) -> Iterator[pl.DataFrame]:
    """Read a scan of `file` in batches of about 16 MiB, given the rough size of a row."""
    rows = min(max(_BATCH_BYTES // row_bytes, 10_000), 500_000)
    with file.reading():
        yield from frame.collect_batches(chunk_size=rows, maintain_order=True, lazy=True)


def time_sample(file: LogFile, column: str) -> pl.Series:
    """Return the first values, and one from further on if they leave day and month open."""
    values = file.scan().select(file.column(column).alias(TIME))
    with file.reading():
        head = values.head(_HEAD_ROWS).collect().to_series()
        if not is_ambiguous(head):
            return head
        telling = values.filter(tells_day_from_month(pl.all())).head(1).collect().to_series()
    return head.append(telling)
