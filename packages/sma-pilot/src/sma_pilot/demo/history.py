"""The synthetic plant's log as a historian would hand it over, with the faults that logs have.

Machines fall silent for maintenance and when the network fails, sensors drop out, rows come late or
twice, and the historian changes its file format half way.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sma_pilot.demo.failures import KINDS, draw_failures
from sma_pilot.demo.plant import PERIOD_MINUTES, SLOTS_PER_DAY, simulate
from sma_pilot.errors import LogError
from sma_pilot.progress import OnProgress
from sma_pilot.run_folder import write_json

VERSION = 1
"""Of the generator: the same version, seed and days make the same rows."""
SEED = 20
DAYS = 126
MACHINES = tuple(f"mill-{number:02d}" for number in range(1, 7))
START = datetime(2025, 3, 3)

_CARD = "demo-log.json"
_TELEMETRY = "telemetry"
_STAGE = "make the synthetic log"
_PARQUET_SINCE = "2025-06"

_HOUR = 60 // PERIOD_MINUTES
_SERVICE_DAYS, _SERVICE = (12, 18), (6 * _HOUR, 12 * _HOUR)
_OUTAGE_DAYS, _OUTAGE = (2, 10), (2 * _HOUR, 4 * _HOUR)
_DROPOUT_DAYS, _DROPOUT = (4, 20), (_HOUR // 2, 6 * _HOUR)  # of one sensor
_LOST_CELLS = 0.003
_LATE_ROWS, _LATE_SLOTS = 0.01, (2, 18)
_RESENT_ROWS, _RESENT_SLOTS = 0.006, (1, 12)

_TITLE = "# A SYNTHETIC plant log"
_README = """{title}

A seeded generator made these files (version {version}, seed {seed});
**no plant ever sent them**. {rows:,} rows of {machines} machines over {days} days, one each
{period} minutes: 14 sensors, product and shift, and a column `failure`: 0 for normal running,
{kinds}. Failures are far more frequent than in a real plant, so that a
few months hold enough to judge.

On purpose the log has silences (maintenance, network), sensors that drop out, rows that come late
or twice (the last one is right), slow drift, and CSV files first and Parquet files later.
"""


def demo_plan_toml() -> str:
    """Return the plan of the demo's pilot: TOML, with comments for a reader."""
    return files("sma_pilot.demo").joinpath("pilot.toml").read_text(encoding="utf-8")


def make_demo_log(
    folder: Path, *, on_progress: OnProgress, days: int = DAYS, seed: int = SEED
) -> None:
    """Write the synthetic log into `folder`, or keep the one that is there and whole.

    The files lie in ``telemetry/``, one for each month; ``README.md`` says what they are. The card
    ``demo-log.json`` is written last, with the hash of each file: without it, or with others, the
    log counts as unfinished and is made anew.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    on_progress : OnProgress
    days : int
        Length of the log; the demo's plan is for the default.
    seed : int

    Raises
    ------
    LogError
        `folder` holds a ``telemetry`` that is not of the demo.
    """
    card = {"format": "sma.demo-log", "synthetic": True, "version": VERSION}
    card |= {"seed": seed, "days": days, "machines": list(MACHINES)}
    steps = len(MACHINES) + 1
    if _is_whole(folder, card):
        on_progress(_STAGE, steps, steps)
        return
    telemetry, partial = folder / _TELEMETRY, folder / f"{_TELEMETRY}.partial"
    if telemetry.exists() and not _is_ours(folder):
        raise LogError(f"{telemetry}: is there already and not of the demo; give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _CARD).unlink(missing_ok=True)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()

    machines: list[pl.DataFrame] = []
    seeds = np.random.SeedSequence(seed).spawn(len(MACHINES))
    for done, (machine, own) in enumerate(zip(MACHINES, seeds, strict=True)):
        on_progress(_STAGE, done, steps)
        machines.append(_machine_log(np.random.default_rng(own), machine, days * SLOTS_PER_DAY))
    on_progress(_STAGE, len(MACHINES), steps)
    log = pl.concat(machines).sort("arrival", "machine", "timestamp", maintain_order=True)
    for month, rows in _months(log):
        if month < _PARQUET_SINCE:
            rows.write_csv(partial / f"{month}.csv", datetime_format="%Y-%m-%d %H:%M:%S")
        else:
            rows.write_parquet(partial / f"{month}.parquet")

    kinds = ", ".join(f"{number} for {name}" for number, name in KINDS.items())
    readme = _README.format(
        title=_TITLE,
        version=VERSION,
        seed=seed,
        rows=log.height,
        machines=len(MACHINES),
        days=days,
        period=PERIOD_MINUTES,
        kinds=kinds,
    )
    (folder / "README.md").write_text(readme, encoding="utf-8")
    shutil.rmtree(telemetry, ignore_errors=True)
    partial.rename(telemetry)
    write_json(folder / _CARD, card | {"rows": log.height, "sha256": _hashes(telemetry)})
    on_progress(_STAGE, steps, steps)


def _is_ours(folder: Path) -> bool:
    # The README is there before the log is, so a log of the demo never stands without it.
    try:
        return (folder / "README.md").read_text(encoding="utf-8").startswith(_TITLE)
    except (OSError, UnicodeDecodeError):
        return False


def _is_whole(folder: Path, card: dict[str, Any]) -> bool:
    try:
        found = json.loads((folder / _CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    wanted = card | {"rows": found.get("rows"), "sha256": _hashes(folder / _TELEMETRY)}
    return found == wanted


def _hashes(telemetry: Path) -> dict[str, str]:
    paths = sorted(telemetry.glob("*"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _machine_log(rng: np.random.Generator, machine: str, slots: int) -> pl.DataFrame:
    """Simulate a machine and spoil its log; ``arrival`` says in which slot a row is written."""
    telemetry = simulate(rng, slots, draw_failures(rng, slots))
    end = START + timedelta(minutes=PERIOD_MINUTES * (slots - 1))
    rows = telemetry.select(
        pl.datetime_range(START, end, f"{PERIOD_MINUTES}m", time_unit="ms").alias("timestamp"),
        pl.lit(machine).alias("machine"),
        # Rounded as a historian does, which also hides the last bits that platforms differ by.
        pl.exclude(pl.Float64),
        pl.col(pl.Float64).round(3),
    ).select(pl.exclude("failure"), "failure")
    # A set point is no measurement: it does not drop out.
    sensors = [name for name in telemetry.select(pl.col(pl.Float64)).columns if "set" not in name]
    keeps = {name: pl.Series(_keeps(rng, slots)) for name in sensors}
    silent = _stretches(rng, slots, _SERVICE_DAYS, _SERVICE)
    silent |= _stretches(rng, slots, _OUTAGE_DAYS, _OUTAGE)
    late = np.arange(slots) + _delays(rng, slots, _LATE_ROWS, _LATE_SLOTS)
    resent = _delays(rng, slots, _RESENT_ROWS, _RESENT_SLOTS)
    sent = rows.with_columns(
        pl.Series("arrival", late),
        *(pl.when(kept).then(pl.col(name)).alias(name) for name, kept in keeps.items()),
    )
    # What is sent again is whole: it is asked for where something was lost on the way.
    again = rows.with_columns(pl.Series("arrival", late + resent))
    return pl.concat([sent.filter(~silent), again.filter(~silent & (resent > 0))])


def _keeps(rng: np.random.Generator, slots: int) -> NDArray[np.bool_]:
    """Say in which slots [T] a sensor's value arrives."""
    return ~(_stretches(rng, slots, _DROPOUT_DAYS, _DROPOUT) | (rng.random(slots) < _LOST_CELLS))


def _stretches(
    rng: np.random.Generator, slots: int, days: tuple[int, int], length: tuple[int, int]
) -> NDArray[np.bool_]:
    """Mark stretches [T] of some length in slots, some days apart."""
    marked = np.zeros(slots, dtype=bool)
    slot = 0
    while (slot := slot + int(rng.integers(*np.array(days) * SLOTS_PER_DAY))) < slots:
        marked[slot : slot + int(rng.integers(*length))] = True
    return marked


def _delays(
    rng: np.random.Generator, slots: int, share: float, delay: tuple[int, int]
) -> NDArray[np.int64]:
    """Return for each row [T] by how many slots it is delayed; 0 for all but a share of them."""
    return np.where(rng.random(slots) < share, rng.integers(*delay, size=slots), 0)


def _months(log: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    """Cut the log by the month in which a row was written, as ``2025-03``."""
    written = pl.lit(START) + pl.duration(minutes=PERIOD_MINUTES * pl.col("arrival"))
    months = log.with_columns(written.dt.strftime("%Y-%m").alias("month"))
    for month, rows in months.group_by("month", maintain_order=True):
        yield str(month[0]), rows.drop("month", "arrival")
