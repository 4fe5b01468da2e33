"""A log in any order, in any pieces, becomes one order on disk, in bounded memory."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tests.pilot.log_cases import MINUTE, START, source, write
from tests.slow import slow

from sma_pilot.logs.reader import LogReader
from sma_pilot.logs.staging import StagedLog, stage
from sma_pilot.plan import LogSource


def _shuffled(folder: Path, files: int = 3, rows: int = 6000) -> tuple[LogSource, pl.DataFrame]:
    """Three machines of very unequal size, in random order over several files."""
    random = np.random.default_rng(3)
    frame = pl.DataFrame(
        {
            "t": START + MINUTE * random.permutation(rows),
            "m": random.choice(["big", "small", "tiny"], rows, p=[0.9, 0.09, 0.01]),
            "x": random.normal(size=rows),
        }
    )
    for i in range(files):
        frame[i::files].write_parquet(folder / f"{i}.parquet")
    return source("*.parquet", entity="m"), frame.sort("m", "t")


def _pieces(log: LogSource, folder: Path, partition_bytes: int) -> tuple[pl.DataFrame, StagedLog]:
    with stage(log, LogReader(log, folder), folder / "out", None, partition_bytes) as staged:
        pieces = [
            piece.rows.with_columns(pl.lit(staged.entities[piece.entity]).alias("m"))
            for piece in staged.pieces()
        ]
        return pl.concat(pieces), staged


@pytest.mark.parametrize("partition_bytes", [1, 60_000, 2**25])
def test_any_order_in_any_pieces_comes_out_sorted(tmp_path: Path, partition_bytes: int) -> None:
    log, expected = _shuffled(tmp_path)
    rows, staged = _pieces(log, tmp_path, partition_bytes=partition_bytes)
    assert rows["m"].to_list() == expected["m"].to_list()
    assert rows["time"].to_list() == expected["t"].to_list()
    assert rows["n0"].to_list() == expected["x"].to_list()
    assert staged.rows == len(expected)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_partition_holds_a_bounded_number_of_rows(tmp_path: Path) -> None:
    log, _ = _shuffled(tmp_path)
    reader = LogReader(log, tmp_path)
    with stage(log, reader, tmp_path / "out", partition_bytes=1) as staged:
        held = [pl.read_ipc(path).height for path in staged.folder.glob("*.sorted.arrow")]
        # 1000 rows are aimed at; a stretch of time may hold somewhat more than its share.
        assert sum(held) == 6000
        assert max(held) < 1200
        assert len(held) >= 6


@pytest.mark.parametrize(("keep", "expected"), [("first", [1.0, 9.0]), ("last", [3.0, 9.0])])
def test_of_rows_of_one_time_the_first_or_the_last_stands(
    tmp_path: Path, keep: str, expected: list[float]
) -> None:
    write(tmp_path / "b.csv", "t,e,x\n2024-01-01,a,1\n2024-01-01,b,9\n2024-01-01,a,2\n")
    write(tmp_path / "a.csv", "t,e,x\n2024-01-01,a,3\n")
    log = source("b.csv", "a.csv", entity="e", duplicates=keep)
    for partition_bytes in (1, 2**25):
        rows, staged = _pieces(log, tmp_path, partition_bytes=partition_bytes)
        assert rows["n0"].to_list() == expected
        assert staged.duplicates == 2


def test_late_rows_are_counted_by_machine_and_file(tmp_path: Path) -> None:
    a = "t,e,x\n2024-01-01,a,1\n2024-01-05,b,1\n2024-01-02,a,1\n2024-01-01,b,1\n2024-01-04,b,2\n"
    write(tmp_path / "a.csv", a)
    write(tmp_path / "b.csv", "t,e,x\n2024-01-01,b,1\n")  # another file begins anew
    assert LogReader(source("a.csv", "b.csv", entity="e"), tmp_path).survey.out_of_order == 2


def test_late_rows_are_counted_across_batches(tmp_path: Path) -> None:
    rows = 1_200_000
    # Each row of the second half is late against the first alone, which is another batch by then.
    time = START + MINUTE * np.roll(np.arange(rows), rows // 2)
    pl.DataFrame({"t": time, "x": np.zeros(rows)}).write_parquet(tmp_path / "a.parquet")
    survey = LogReader(source("a.parquet"), tmp_path).survey
    assert (survey.rows, survey.out_of_order) == (rows, rows // 2)


def test_survey_tells_the_span_of_each_machine(tmp_path: Path) -> None:
    log, expected = _shuffled(tmp_path)
    survey = LogReader(log, tmp_path).survey
    for name, span in survey.entities.items():
        times = expected.filter(pl.col("m") == name)["t"]
        assert (span.rows, span.first, span.last) == (len(times), times.min(), times.max())


MEMORY = """
import resource, sys
from pathlib import Path
from sma_pilot.logs.windows import prepare
from tests.pilot.log_cases import make_plan
plan = make_plan("*.parquet", entity="m", numeric=("x*",))
for folder in map(Path, sys.argv[1:]):
    dataset = prepare(plan, folder, folder / "out", partition_bytes=2**22)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(sum(split.rows for split in dataset.card.splits.values()), peak)
"""


@slow
def test_memory_does_not_follow_the_log(tmp_path: Path) -> None:
    sizes = (100_000, 1_200_000)
    for rows in sizes:
        folder = tmp_path / str(rows)
        folder.mkdir()
        random = np.random.default_rng(0)
        for part in range(2):
            time = START + 10**9 * (2 * random.permutation(rows // 2) + part)
            values = {f"x{i}": random.random(rows // 2).astype(np.float32) for i in range(8)}
            machine = random.integers(0, 3, rows // 2).astype(str)
            frame = pl.DataFrame({"t": time, "m": machine, **values})
            frame.write_parquet(folder / f"{part}.parquet", row_group_size=50_000)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *(str(tmp_path / str(rows)) for rows in sizes)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env=os.environ | {"POLARS_MAX_THREADS": "2", "OMP_NUM_THREADS": "1"},
    )
    (small, before), (large, after) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert (small, large) == sizes
    # In memory the larger log takes 100 MB, twelve times what the smaller does; sorting it takes
    # three times as much.
    assert after - before < 80, (before, after)
