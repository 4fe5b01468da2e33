"""The raw files of a log: finding them, their format, their columns, their fingerprints."""

import codecs
import glob
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import polars as pl
import polars.selectors as cs

from sma_pilot.errors import LogError
from sma_pilot.plan import LineFormat

Format = Literal["parquet", "csv", "ndjson", "lines"]

FORMATS: dict[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".csv.gz": "csv",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".log": "lines",
    ".txt": "lines",
}
SEPARATORS = (",", ";", "\t", "|")
# What spreadsheets, databases and pandas write for "no value".
NO_VALUE = ["", "NA", "N/A", "#N/A", "NULL", "Null", "null", "None", "NaN", "nan"]
ROW = "sma-pilot row"
"""Column of `LogFile.scan` that counts the file's data rows from 0."""
LINE = "sma-pilot line"
"""Column of `LogFile.scan` that holds the whole line, of a file of plain lines."""
_GROUPS = "sma-pilot groups"
_SAMPLED_RECORDS = 1000
_LOOKS_LIKE_DATA = re.compile(r"[\s\d.,:+\-/TZeE]*\d[\s\d.,:+\-/TZeE]*")


@dataclass(frozen=True)
class LogFile:
    """One raw file and what its head says.

    Parameters
    ----------
    path : Path
        Where it is.
    name : str
        What errors and provenance call it: its path relative to the data folder.
    format : {"parquet", "csv", "ndjson", "lines"}
        How it is read.
    dtypes : mapping of str to polars.DataType
        Its columns in order. Text formats hold strings only: types come from the plan, never from
        a guess over the first rows.
    separator : str
        Between the cells of a CSV row.
    header : tuple of str
        All cells of a CSV header, the nameless ones too.
    pattern : str
        Regular expression whose named groups are the columns of plain lines.
    """

    path: Path
    name: str
    format: Format
    dtypes: Mapping[str, pl.DataType]
    separator: str = ","
    header: tuple[str, ...] = ()
    pattern: str = ""

    @property
    def is_text(self) -> bool:
        """Whether every value arrives as a string."""
        return self.format != "parquet"

    def scan(self) -> pl.LazyFrame:
        """Scan the file lazily, its rows numbered in the column `ROW`."""
        if self.format == "parquet":
            return pl.scan_parquet(self.path, glob=False, row_index_name=ROW)
        if self.format == "csv":
            return pl.scan_csv(
                self.path,
                glob=False,
                separator=self.separator,
                infer_schema=False,
                null_values=NO_VALUE,
                with_column_names=self._name_columns,
                row_index_name=ROW,
            )
        if self.format == "lines":
            groups = pl.col(LINE).str.extract_groups(self.pattern).alias(_GROUPS)
            lines = pl.scan_lines(self.path, glob=False, name=LINE, row_index_name=ROW)
            written = lines.filter(pl.col(LINE).str.strip_chars() != "")
            return written.with_columns(groups).unnest(_GROUPS)
        schema = dict.fromkeys(self.dtypes, pl.String)
        return pl.scan_ndjson(Path(glob.escape(str(self.path))), schema=schema, row_index_name=ROW)

    def _name_columns(self, names: list[str]) -> list[str]:
        # polars leaves blanks and doubled quotes in the header's cells, and numbers nameless ones.
        return [mine or theirs for mine, theirs in zip(self.header, names, strict=True)]

    def column(self, name: str) -> pl.Expr:
        """Return the column of exactly this name; `polars.col` would read ``^t.*$`` or ``*``."""
        return cs.by_name(name).as_expr()

    def place(self, column: str, row: int) -> str:
        """Say where the value of data row `row` (from 0) stands and what it is, for an error."""
        with self.reading():
            rows = self.scan().filter(pl.col(ROW) == row)
            value = rows.select(self.column(column)).collect().item()
        row_word = "line" if self.format == "lines" else "row"
        return f"{self.name}: column {column!r}, {row_word} {row + 1}: {value!r}"

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn what polars raises while it reads this file into a `LogError` that names it."""
        try:
            yield
        except (pl.exceptions.PolarsError, OSError) as error:
            raise LogError(f"{self.name}: {_why_unreadable(self, error)}") from error


def find_files(patterns: Sequence[str], data_dir: Path) -> list[Path]:
    """Expand paths and glob patterns against the data folder, in the order of the patterns.

    Raises
    ------
    LogError
        When a pattern matches no file or a file's ending is of no known format.
    """
    found: dict[Path, Path] = {}
    for pattern in patterns:
        path = data_dir / pattern
        # A literal name may hold glob characters.
        for match in [path] if path.is_file() else _glob(pattern, data_dir):
            format_of(match)
            found.setdefault(match.resolve(), match)  # a file named twice is read once
    return list(found.values())


def _glob(pattern: str, data_dir: Path) -> list[Path]:
    path = data_dir / pattern
    if path.is_dir():
        raise LogError(
            f"log.files: {pattern!r} is a folder; name the files in it, such as "
            f"{str(Path(pattern) / '*.csv')!r}"
        )
    base = Path(path.anchor) if Path(pattern).is_absolute() else data_dir
    relative = str(path.relative_to(base))
    try:
        matches = sorted(match for match in base.glob(relative) if match.is_file())
    except ValueError as error:
        raise LogError(f"log.files: {pattern!r} is no pattern: {error}") from error
    if not matches:
        raise LogError(f"log.files: {pattern!r} matches no file in {str(data_dir)!r}")
    return matches


def format_of(path: Path) -> Format:
    """Tell the format from the file's ending; raise `LogError` for an unknown one."""
    for ending in ("".join(path.suffixes[-2:]).lower(), path.suffix.lower()):
        if ending in FORMATS:
            return FORMATS[ending]
    raise LogError(f"{path}: unknown ending {path.suffix!r}; known: {', '.join(FORMATS)}")


def open_file(path: Path, data_dir: Path, lines: LineFormat | None = None) -> LogFile:
    """Read the head of one file; `lines` says how plain lines become columns.

    Raises
    ------
    LogError
        When the file is empty, unreadable, has no header, or names a column twice; when it holds
        plain lines and nothing says what they mean.
    """
    name = printable(path.relative_to(data_dir) if path.is_relative_to(data_dir) else path)
    file = LogFile(path, name, format_of(path), {})
    if path.stat().st_size == 0:
        raise LogError(f"{name}: the file is empty")
    with file.reading():
        if file.format == "parquet":
            with path.open("rb") as content:  # by its path, polars would read a pattern
                dtypes = dict(pl.read_parquet_schema(content))
            file = replace(file, dtypes=dtypes)
        elif file.format == "lines":
            if lines is None:
                raise LogError(
                    f"{name}: plain lines; give log.lines.pattern in the plan, a regular "
                    "expression whose named groups are the columns"
                )
            dtypes = dict.fromkeys(lines.columns, pl.String())
            file = replace(file, dtypes=dtypes, pattern=lines.pattern)
        elif file.format == "ndjson":
            file = replace(file, dtypes=dict.fromkeys(_keys(file), pl.String()))
        else:
            separator, header = _header(file)
            file = replace(
                file,
                dtypes={name: pl.String() for name in header if name},
                separator=separator,
                header=tuple(header),
            )
    if ROW in file.dtypes:
        raise LogError(f"{name}: column {ROW!r} has a name that is used here; rename it")
    return file


def open_files(
    patterns: Sequence[str], data_dir: Path, lines: LineFormat | None = None
) -> list[LogFile]:
    """Find and open the files of a log; see `find_files` and `open_file` for the errors."""
    return [open_file(path, data_dir, lines) for path in find_files(patterns, data_dir)]


def printable(text: object) -> str:
    """Return a name from outside with its control characters escaped, fit for a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def fingerprint(file: LogFile) -> dict[str, Any]:
    """Return the file's name, size, time of last change and SHA-256, JSON-ready."""
    stat = file.path.stat()
    with file.path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {
        "file": file.name,
        "bytes": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "sha256": digest,
    }


def _header(file: LogFile) -> tuple[str, list[str]]:
    # The separator is the one that cuts the header into most cells: a header has no free text.
    headers: dict[str, list[str]] = {}
    for separator in SEPARATORS:
        try:
            cells = pl.read_csv(
                file.path,
                glob=False,
                separator=separator,
                has_header=False,
                n_rows=1,
                infer_schema=False,
                truncate_ragged_lines=True,
            ).row(0)
        except pl.exceptions.ComputeError:
            if separator == SEPARATORS[0]:
                raise
            continue  # quotes that only make sense with another separator
        headers[separator] = [(cell or "").strip() for cell in cells]
    separator = max(headers, key=lambda key: len(headers[key]))
    header = headers[separator]
    named = [cell for cell in header if cell]
    if not named:
        raise LogError(f"{file.name}: the first line names no column; a header line is needed")
    if all(_LOOKS_LIKE_DATA.fullmatch(cell) for cell in named):
        raise LogError(
            f"{file.name}: the first line looks like data ({', '.join(named[:4])}); "
            "a header line with column names is needed"
        )
    twice = [cell for cell, count in Counter(named).items() if count > 1]
    if twice:
        raise LogError(f"{file.name}: column {twice[0]!r} appears twice in the header; rename one")
    return separator, header


def _keys(file: LogFile) -> list[str]:
    keys: dict[str, None] = {}
    with file.path.open("rb") as lines:
        for number, line in enumerate(islice(lines, _SAMPLED_RECORDS), start=1):
            if not line.strip():
                continue
            fault = _json_fault(line)
            if fault is not None:
                raise LogError(f"{file.name}: line {number} {fault}")
            record = json.loads(line)
            if not isinstance(record, dict):
                raise LogError(f"{file.name}: line {number} is no JSON object, one record a line")
            keys |= dict.fromkeys(record)
    if not keys:
        raise LogError(f"{file.name}: the file holds no record")
    return list(keys)


def _json_fault(line: bytes) -> str | None:
    """Say why a line is no record that polars reads; None if it is one."""
    if line.startswith(codecs.BOM_UTF8):
        return "begins with a byte order mark; save the file as UTF-8 without one"
    try:
        json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        return "is not UTF-8 text; save the file as UTF-8"
    except (ValueError, RecursionError) as problem:
        return f"is no JSON: {problem}"
    return None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is none of its values; write null")


def _why_unreadable(file: LogFile, error: Exception) -> str:
    """Look for the line that polars stumbled over; it names none itself."""
    reason = str(error).split("\n", 1)[0]
    if not file.is_text or file.path.suffix == ".gz":
        return f"cannot be read as {file.format}: {reason}"
    separator = file.separator.encode()
    width = len(file.header)
    with file.path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return f"line {number} is not UTF-8 text; save the file as UTF-8"
            if file.format == "csv" and b'"' not in line:
                cells = line.count(separator) + 1
                width = width or cells
                if cells > width:
                    return f"line {number} has {cells} cells, the header {width}"
            fault = _json_fault(line) if file.format == "ndjson" and line.strip() else None
            if fault is not None:
                return f"line {number} {fault}"
    return f"cannot be read as {file.format}: {reason}"
