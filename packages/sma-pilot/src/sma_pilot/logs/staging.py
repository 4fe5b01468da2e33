"""External sort: a log larger than memory, brought into time order on disk.

Rows come in any order from any number of files. One pass spills them into partitions small enough
to sort in memory: whole machines where they are small, stretches of time of one machine where it is
large. Each partition is then sorted and freed of duplicates, once, and read back in order. Peak
memory is a few partitions, whatever the log's size.

A partitioned sink of polars would be the shorter way; measured on 5 million rows of 18 columns in
random order (0.7 GB) it peaked at 1.0 to 1.4 GB, since it holds what it has not yet written. The
same rows, cut and appended in batches as here, peaked at 0.3 GB.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import psutil

from sma_pilot.errors import LogError
from sma_pilot.logs.reader import FILE, LogReader
from sma_pilot.logs.survey import ENTITY, ORDER, TIME, Survey
from sma_pilot.plan import LogSource
from sma_pilot.progress import OnProgress

PARTITION_BYTES = 32 * 2**20
"""Size of a partition in memory that is aimed at; sorting it takes about three times as much."""
_PARTITION = "partition"


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of one entity, in time order, no time twice.

    Parameters
    ----------
    entity : int
        Index into `StagedLog.entities`.
    rows : polars.DataFrame
        Columns ``time`` Int64 ns, ``label`` Int32, ``n0``... Float64, ``c0``... String.
    """

    entity: int
    rows: pl.DataFrame


@dataclass(frozen=True)
class _Layout:
    """Which partition each row belongs to: a first number for each entity, and a width in ns."""

    first: dict[str, int]
    origin: dict[str, int]
    width: dict[str, int]
    partitions: int

    @classmethod
    def plan(cls, survey: Survey, rows_per_partition: int) -> "_Layout":
        first, origin, width = {}, {}, {}
        partition, filled = -1, rows_per_partition
        for name, span in survey.entities.items():
            origin[name] = span.first
            pieces = -(-span.rows // rows_per_partition)
            # At least 1 ns wide, and wide enough that the last row falls into the last piece.
            width[name] = (span.last - span.first) // pieces + 1
            if pieces > 1 or filled + span.rows > rows_per_partition:
                partition, filled = partition + 1, 0
            first[name] = partition
            if pieces > 1:
                partition, filled = partition + pieces - 1, rows_per_partition
            filled += span.rows
        return cls(first, origin, width, partition + 1)

    def partition_of(self) -> pl.Expr:
        entity = pl.col(ENTITY)

        def look_up(numbers: dict[str, int]) -> pl.Expr:
            return entity.replace_strict(
                list(numbers), list(numbers.values()), return_dtype=pl.Int64
            )

        since = pl.col(TIME) - look_up(self.origin)
        return look_up(self.first) + since // look_up(self.width)


class StagedLog:
    """A log on disk in order; made by `stage`.

    Parameters
    ----------
    reader : LogReader
        The raw log.
    folder : Path
        Where the partitions are, and what else may go when the staged log goes.
    partitions : int
        How many there are.
    duplicates : int
        Rows dropped because their entity has another row of the same time.
    """

    def __init__(self, reader: LogReader, folder: Path, partitions: int, duplicates: int) -> None:
        self.reader = reader
        self.folder = folder
        self.duplicates = duplicates
        self.entities = list(reader.survey.entities)
        self._partitions = partitions

    @property
    def rows(self) -> int:
        """Rows that are left: placed and not duplicated."""
        survey = self.reader.survey
        return sum(span.rows for span in survey.entities.values()) - self.duplicates

    def pieces(self) -> Iterator[Piece]:
        """Read everything back: entity after entity, each in time order, in bounded pieces."""
        index = {name: i for i, name in enumerate(self.entities)}
        for partition in range(self._partitions):
            path = _sorted_file(self.folder, partition)
            if not path.exists():
                continue  # a stretch of time without a row
            frame = pl.read_ipc(path)
            for rows in frame.partition_by(ENTITY, maintain_order=True):
                yield Piece(index[rows[ENTITY][0]], rows.drop(ENTITY))


@contextmanager
def stage(
    log: LogSource,
    reader: LogReader,
    beside: Path | None = None,
    on_progress: OnProgress | None = None,
    partition_bytes: int = PARTITION_BYTES,
) -> Iterator[StagedLog]:
    """Bring a log into order on disk for the length of a ``with`` block.

    Parameters
    ----------
    log : LogSource
        The plan's description: which of two duplicates stands.
    reader : LogReader
        The log, opened.
    beside : Path, optional
        The partitions go into a hidden folder beside this one, on its disk; None: the system's
        temporary folder. They take about the space of the log as Parquet.
    on_progress : OnProgress, optional
        Told the rows read.
    partition_bytes : int
        See `PARTITION_BYTES`.

    Raises
    ------
    LogError
        When the log does not fit the plan, or changes while it is read.
    """
    folder = _make_folder(beside)
    try:
        reader.take_survey(on_progress)
        layout = _Layout.plan(reader.survey, max(1000, partition_bytes // reader.row_bytes))
        _spill(reader, layout, folder, on_progress)
        duplicates = 0
        for partition in range(layout.partitions):
            duplicates += _sort(folder, partition, log.duplicates)
            if on_progress is not None:
                on_progress("sort log", partition + 1, layout.partitions)
        for name, stamp in reader.take_stamps().items():
            if reader.stamps[name] != stamp:
                raise LogError(f"{name}: the file changed while it was read; replay a copy of it")
        yield StagedLog(reader, folder, layout.partitions, duplicates)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _spill(
    reader: LogReader, layout: _Layout, folder: Path, on_progress: OnProgress | None
) -> None:
    total, done = sum(span.rows for span in reader.survey.entities.values()), 0
    partition = layout.partition_of().alias(_PARTITION)
    for number, batch in enumerate(reader.batches()):
        parts = batch.with_columns(partition).partition_by(
            _PARTITION, as_dict=True, include_key=False
        )
        for (key,), part in parts.items():
            part.write_ipc(_spill_folder(folder, key) / f"{number}.arrow", compression="lz4")
        done += batch.height
        if on_progress is not None:
            on_progress("read log", done, total)


def _sort(folder: Path, partition: int, keep: str) -> int:
    """Sort one partition, drop its duplicates and return how many there were."""
    spilled = folder / str(partition)
    files = sorted(spilled.glob("*.arrow"), key=lambda path: int(path.stem))
    if not files:
        return 0
    frame = pl.concat([pl.read_ipc(path) for path in files])
    # Two rows of one machine and time stay in the order of the files, so first and last mean it.
    frame = frame.sort(ENTITY, TIME, FILE, ORDER)
    if keep == "keep":
        frame = frame.with_columns(_told_apart().alias(TIME))
    neighbour = 1 if keep == "first" else -1
    other = [pl.col(key) != pl.col(key).shift(neighbour) for key in (ENTITY, TIME)]
    kept = frame.filter(pl.any_horizontal(other).fill_null(True))
    kept.drop(FILE, ORDER).write_ipc(_sorted_file(folder, partition), compression="lz4")
    shutil.rmtree(spilled)
    return frame.height - kept.height


def _told_apart() -> pl.Expr:
    """Time of each row, moved on by as little as makes it later than the entity's row before."""
    place = pl.int_range(pl.len(), dtype=pl.Int64).over(ENTITY)
    return (pl.col(TIME) - place).cum_max().over(ENTITY) + place


def _spill_folder(folder: Path, partition: int) -> Path:
    path = folder / str(partition)
    path.mkdir(exist_ok=True)
    return path


def _sorted_file(folder: Path, partition: int) -> Path:
    return folder / f"{partition}.sorted.arrow"


def _make_folder(beside: Path | None) -> Path:
    if beside is None:
        return Path(tempfile.mkdtemp(prefix="sma-pilot-"))
    beside.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{beside.name}.staging-"
    # A killed run leaves its folder behind; the process number in the name tells a dead one.
    for old in beside.parent.glob(f"{prefix}*"):
        if not _has_owner(old, old.name.removeprefix(prefix).split("-")[0]):
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=beside.parent))


def _has_owner(folder: Path, process: str) -> bool:
    """Tell whether the process that made a staging folder still runs."""
    try:
        # A process younger than the folder has only inherited its number: in a container, the
        # same command tends to get the same one.
        return psutil.Process(int(process)).create_time() <= folder.stat().st_ctime
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, ValueError, OSError):
        return True  # it is not ours to judge
