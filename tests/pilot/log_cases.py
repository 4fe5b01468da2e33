"""Plans, logs and readings that the tests of a log's way into a data set share."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sma_core import PreparedDataset
from sma_pilot.logs.reader import LogReader
from sma_pilot.plan import LogSource, Plan

MINUTE = 60 * 10**9
START = 1_704_067_200 * 10**9  # 2024-01-01T00:00:00Z
ARMS = {"incumbent": {"kind": "dense_twin"}, "candidate": {"kind": "sma"}}


def source(*files: str, **changes: Any) -> LogSource:
    """A log of channel x by time t, a row a minute."""
    fields = {
        "files": files,
        "time": "t",
        "numeric": ("x",),
        "period": "1m",
        "max_gap": "10m",
    }
    return LogSource.model_validate(fields | changes)


def make_plan(
    *files: str, horizon: str | None = None, quality: dict[str, Any] | None = None, **log: Any
) -> Plan:
    """A plan on such a log: `slices` may stand among the log's fields, a horizon means alarm."""
    slices = log.pop("slices", {"validation_from": 0.6, "judged_from": 0.8})
    task = {"kind": "alarm", "horizon": horizon} if horizon else {"kind": "forecast_anomaly"}
    usual = {"loss_limit": 0.1, "false_alarms_per_day": 1.0, "alarm_merge": "5m"}
    return Plan.model_validate(
        {
            "version": 1,
            "name": "case",
            "log": source(*files, **log).model_dump(),
            "slices": slices,
            "task": task,
            "quality": usual | (quality or {}),
            "arms": ARMS,
        }
    )


def write(path: Path, content: str | bytes) -> str:
    """Write a file and return its name."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path.name


def read_log(log: LogSource, folder: Path) -> pl.DataFrame:
    """All canonical rows of a log, in the order of its files."""
    return pl.concat(list(LogReader(log, folder).batches()))


def plant(rows: int = 600, machines: int = 3, seed: int = 0) -> pl.DataFrame:
    """Machines whose rows come interleaved, with events, a mode, missing values and a gap."""
    random = np.random.default_rng(seed)
    frames = []
    for machine in range(machines):
        minute = np.arange(rows) + np.where(np.arange(rows) > rows // 3, 45, 0)
        label = (np.arange(rows) % 97 > 92).astype(np.int32)
        x = random.normal(10 * machine, 1 + machine, rows) + 3 * label
        x[random.random(rows) < 0.05] = np.nan
        frames.append(
            pl.DataFrame(
                {
                    "t": START + MINUTE * minute,
                    "machine": [f"m{machine}"] * rows,
                    "x": x,
                    "y": random.exponential(5.0, rows),
                    "mode": random.choice(["idle", "run", "stop"], rows),
                    "fault": label,
                }
            ).with_columns(pl.col("x").fill_nan(None))
        )
    return pl.concat(frames).sort("t", "machine")


PLANT = {
    "entity": "machine",
    "label": "fault",
    "numeric": ("x", "y"),
    "categorical": ("mode",),
}


def split_arrays(dataset: PreparedDataset, name: str) -> dict[str, np.ndarray]:
    """Everything that a split holds, as arrays by tensor name."""
    split = dataset.split(name)
    rows = split.read(0, split.rows)
    found = {"offsets": split.offsets, "entity": split.entity, **vars(rows)}
    return {key: value.numpy() for key, value in found.items() if value is not None}


def same_split(one: PreparedDataset, other: PreparedDataset, name: str) -> bool:
    """Whether a split is the same bit for bit."""
    a, b = split_arrays(one, name), split_arrays(other, name)
    return a.keys() == b.keys() and all(
        a[key].dtype == b[key].dtype and a[key].tobytes() == b[key].tobytes() for key in a
    )
