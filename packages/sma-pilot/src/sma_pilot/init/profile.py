"""What each column of a log holds, from one pass over all rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from sma_pilot.errors import LogError
from sma_pilot.logs.cells import is_filled, number, word
from sma_pilot.logs.files import FORMATS, LogFile
from sma_pilot.logs.reader import stream
from sma_pilot.progress import OnProgress

MOST_WORDS = 200
"""Distinct values that are kept of a column; one more means "many"."""
# What is looked for in a folder: plain lines need a pattern of their own, which none can guess.
_TABLES = tuple(ending for ending, form in FORMATS.items() if form != "lines")


@dataclass
class ColumnProfile:
    """What one column holds, over all files.

    Parameters
    ----------
    name : str
    dtype : polars.DataType
        In the first file.
    filled : int
        Cells that hold anything.
    not_numbers : int
        Filled cells that are no number.
    words : set of str
        Its distinct values as texts, up to `MOST_WORDS` + 1 of them.
    """

    name: str
    dtype: pl.DataType
    filled: int = 0
    not_numbers: int = 0
    words: set[str] | None = None

    @property
    def is_number(self) -> bool:
        """Whether every value is a number."""
        return self.filled > 0 and self.not_numbers == 0

    @property
    def is_few(self) -> bool:
        """Whether its distinct values are few enough to be known, and repeat."""
        return self.words is not None and len(self.words) <= min(MOST_WORDS, self.filled // 5)


@dataclass(frozen=True)
class Profile:
    """What the columns hold that all files share; `partial` names the others."""

    rows: int
    columns: dict[str, ColumnProfile]
    partial: tuple[str, ...]


def take_profile(files: Sequence[LogFile], on_progress: OnProgress | None = None) -> Profile:
    """Pass once over all columns of all files, in bounded memory."""
    shared = [name for name in files[0].dtypes if all(name in file.dtypes for file in files)]
    every = dict.fromkeys(name for file in files for name in file.dtypes)
    profiles = {name: ColumnProfile(name, files[0].dtypes[name], words=set()) for name in shared}
    rows = 0
    for file in files:
        readable = [name for name in shared if not _is_opaque(file.dtypes[name])]
        for name in set(shared).difference(readable):
            profiles[name].dtype = file.dtypes[name]
        frame = file.scan().select(
            *(word(file, name).alias(f"w{i}") for i, name in enumerate(readable)),
            *(_is_no_number(file, name).alias(f"x{i}") for i, name in enumerate(readable)),
        )
        for batch in stream(file, frame, 64 * (1 + len(readable))):
            rows += batch.height
            for i, name in enumerate(readable):
                _add(profiles[name], batch[f"w{i}"], batch[f"x{i}"])
            if on_progress is not None:
                on_progress("look at columns", rows, None)
    if rows == 0:
        raise LogError(f"{files[0].name}: the log holds no row")
    return Profile(rows, profiles, tuple(name for name in every if name not in profiles))


def find_log_files(paths: Sequence[Path], data_dir: Path) -> list[Path]:
    """Expand what a user gave: files, folders, glob patterns; from here, then from `data_dir`.

    Raises
    ------
    LogError
        When one of them is nothing that can be read.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        for match in _expand(path, data_dir):
            found.setdefault(match.resolve(), match)
    return list(found.values())


def _expand(path: Path, data_dir: Path) -> list[Path]:
    for start in dict.fromkeys((Path(), data_dir)):
        here = start / path
        if here.is_file():
            return [here]
        try:
            if here.is_dir():
                found = here.rglob("*")
            else:
                found = Path(here.anchor).glob(str(here.relative_to(here.anchor)))
            logs = sorted(file for file in found if _is_log(file, here))
        except ValueError as error:
            raise LogError(f"{str(path)!r} is no pattern: {error}") from error
        if logs:
            return logs
    raise LogError(
        f"{str(path)!r}: no such file, and no folder or pattern with files ending in "
        f"{', '.join(_TABLES)}"
    )


def _is_log(file: Path, searched: Path) -> bool:
    inside = file.relative_to(searched) if file.is_relative_to(searched) else Path(file.name)
    hidden = any(part.startswith(".") for part in inside.parts)
    return not hidden and file.name.lower().endswith(_TABLES) and file.is_file()


def _is_opaque(dtype: pl.DataType) -> bool:
    return dtype.is_nested() or dtype in (pl.Binary, pl.Duration, pl.Object)


def _is_no_number(file: LogFile, name: str) -> pl.Expr:
    dtype = file.dtypes[name]
    if dtype.is_numeric() or dtype in (pl.Boolean, pl.Null):
        return pl.lit(False)
    if dtype == pl.String:
        return is_filled(file, name) & number(file, name).is_null()
    return is_filled(file, name)


def _add(profile: ColumnProfile, words: pl.Series, not_numbers: pl.Series) -> None:
    profile.filled += len(words) - words.null_count()
    profile.not_numbers += int(not_numbers.sum())
    if profile.words is not None and len(profile.words) <= MOST_WORDS:
        profile.words |= set(words.drop_nulls().unique().head(MOST_WORDS + 1))
