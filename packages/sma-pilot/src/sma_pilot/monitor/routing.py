"""Collapse of the router, told from the decisions that a replay kept."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from sma_pilot.guard.routing import ActivationWindow
from sma_pilot.plan import MonitorPlan


def collapsed_share(folders: Sequence[Path], limits: MonitorPlan) -> float | None:
    """Return the share of rows at whose end of a window the router ran nothing, or everything.

    Parameters
    ----------
    folders : sequence of Path
        Replays whose routing decisions are read, one after the other.
    limits : MonitorPlan

    Returns
    -------
    float or None
        None when the candidate does not route, or no entity has a whole window.
    """
    collapsed = told = 0
    for folder in folders:
        parts = sorted((folder / "routing").glob("part-*.parquet"))
        if not parts:
            continue
        rows = (
            pl.scan_parquet(parts)
            .group_by("entity", "time")
            .agg(pl.col("active").sum().alias("ran"), pl.len().alias("modules"))
            .sort("entity", "time")
            .collect()
        )
        for own in rows.partition_by("entity"):
            window = ActivationWindow(limits.window_rows)
            for ran, modules in zip(own["ran"].to_list(), own["modules"].to_list(), strict=True):
                share = window.push(ran, modules)
                if share is not None:
                    told += 1
                    collapsed += not limits.never_active < share < limits.always_active
    return collapsed / told if told else None
