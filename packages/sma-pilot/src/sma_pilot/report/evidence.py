"""What the page and the tracking show, read once from a run folder."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sma_core import DatasetError
from sma_core.dataset import PreparedDataset
from sma_pilot.decision.record import Decision, load_decisions
from sma_pilot.errors import RunError
from sma_pilot.judge.alarms import episode_starts
from sma_pilot.judge.events import DAY_NS, NORMAL, POSITIVE, nanoseconds
from sma_pilot.judge.measurements import (
    CANDIDATE,
    JUDGED,
    OFFLINE,
    VALIDATION,
    AlignedSlice,
    Measurements,
)
from sma_pilot.judge.result import Result
from sma_pilot.judge.scene import ArmQuality, Scene, set_thresholds
from sma_pilot.plan import Plan
from sma_pilot.replay.measurements_io import load_measurements
from sma_pilot.run_folder import RunFolder

_CURVE_POINTS = 60


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """A judged run, with the rows and events that its figures came from.

    Attributes
    ----------
    result_sha256 : str
        Of ``result.json`` as it lies on disk.
    scene : Scene
        The judged rows and their events.
    quality : mapping arm -> ArmQuality
        Every arm that was scored, the incumbent's second pass too.
    decisions : tuple of Decision
        What was signed, oldest first.
    """

    run: RunFolder
    plan: Plan
    result: Result
    result_sha256: str
    dataset: PreparedDataset
    measurements: Measurements
    scene: Scene
    quality: Mapping[str, ArmQuality]
    decisions: tuple[Decision, ...] = ()

    @classmethod
    def read(cls, run_folder: Path) -> "Evidence":
        """Read a run folder.

        Raises
        ------
        RunError
            When a part is absent or damaged, or belongs to another plan.
        """
        run = RunFolder.open(run_folder)
        plan = run.load_plan()
        result, sha256 = read_result(run.result)
        if result.plan["digest"] != plan.digest:
            raise RunError(f"{run.result}: judged by another plan; run `sma-pilot judge` again")
        decisions = load_decisions(run)
        try:
            dataset = PreparedDataset.open(run.dataset)
        except DatasetError as error:
            raise RunError(f"{error}; run `sma-pilot prepare` again") from error
        measurements = load_measurements(*run.replays)
        thresholds = set_thresholds(AlignedSlice.align(measurements, VALIDATION), plan)
        scene = Scene.of(AlignedSlice.align(measurements, JUDGED), plan)
        return cls(
            run=run,
            plan=plan,
            result=result,
            result_sha256=sha256,
            dataset=dataset,
            measurements=measurements,
            scene=scene,
            quality={arm: scene.score(arm, thresholds.get(arm)) for arm in scene.rows.scores},
            decisions=decisions,
        )

    @property
    def is_signed_result(self) -> bool:
        """Whether ``result.json`` is the one that the newest decision was signed over."""
        return bool(self.decisions) and (
            self.decisions[-1].files.get(self.run.name_of(self.run.result)) == self.result_sha256
        )

    @property
    def arms(self) -> tuple[str, ...]:
        """Arms that were scored, in the page's order."""
        return tuple(self.quality)

    def threshold(self, arm: str) -> float | None:
        """Return the score above which `arm` alarms; None when validation rows gave none."""
        chosen = self.quality[arm].threshold
        return None if chosen is None else chosen.value

    def trade_off(self, arm: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return false alarms (a day and entity) and event recall as the threshold falls.

        A few dozen thresholds between the highest judged score and the one over which a tenth of
        normal rows lies, or as many as lie over the arm's own threshold if that is more; each
        point is exact, and the arm's own threshold is one of them.
        """
        rows, scene = self.scene.rows, self.scene
        score = rows.scores[arm]
        normal = np.flatnonzero((scene.kinds == NORMAL) & ~np.isnan(score))
        days = float(scene.exposure[normal].sum()) / DAY_NS
        if not days or not scene.events.count:
            return np.empty(0), np.empty(0)
        peaks = _peaks(score, scene.events.window_start, scene.events.window_stop)
        own = [] if (chosen := self.threshold(arm)) is None else [chosen]
        deepest = max([0.1, *(float((score[normal] > level).mean()) for level in own)])
        shares = np.geomspace(1 / normal.size, deepest, _CURVE_POINTS)
        levels = np.sort([*np.quantile(score[normal], 1 - shares), *own])[::-1]
        merge = nanoseconds(self.plan.quality.alarm_merge or self.plan.log.period)
        alarms = []
        for level in levels:
            over = normal[score[normal] > level]
            alarms.append(episode_starts(rows.entity[over], rows.time[over], merge).sum())
        recall = (peaks[None, :] > levels[:, None]).mean(axis=1)
        return np.array(alarms) / days, recall

    def routing(self, entity: str, first_ns: int, last_ns: int) -> pl.DataFrame:
        """Return the candidate's decisions on one entity between two times, both included.

        Columns ``time``, ``layer``, ``submodule``, ``active``; no rows when it does not route.
        """
        return (
            self._routing_log()
            .filter(
                pl.col("entity").cast(pl.String) == entity,
                pl.col("time").is_between(first_ns, last_ns),
            )
            .select("time", "layer", pl.col("submodule").cast(pl.String), "active")
            .sort("time", "layer", "submodule")
            .collect()
        )

    def routing_rates(self) -> list[tuple[str, float, float | None]]:
        """Return (sub-module, share of judged steps that ran it, the same where alarms are due).

        Alarms are due within events, or for task ``alarm`` within the horizon before them. The
        share there is None when no such step was logged.
        """
        rows = self.scene.rows
        inside = np.flatnonzero(self.scene.kinds == POSITIVE)
        events = pl.DataFrame(
            {
                "entity": [self.measurements.entities[code] for code in rows.entity[inside]],
                "time": rows.time[inside],
            },
            schema={"entity": pl.String, "time": pl.Int64},
        ).lazy()
        place = ["layer", "submodule"]
        log = self._routing_log().with_columns(pl.col("entity", "submodule").cast(pl.String))
        whole = log.group_by(place).agg(pl.col("active").mean().alias("all"))
        within = log.join(events, on=["entity", "time"], how="semi")
        within = within.group_by(place).agg(pl.col("active").mean().alias("events"))
        table = whole.join(within, on=place, how="left").sort(place).collect(engine="streaming")
        return [
            (f"layer {row['layer']} {row['submodule']}", row["all"], row["events"])
            for row in table.iter_rows(named=True)
        ]

    def _routing_log(self) -> pl.LazyFrame:
        parts = [
            part
            for replay in self.run.replays
            for part in sorted((replay / "routing").glob("part-*.parquet"))
        ]
        if not parts:
            columns = {"entity": pl.String, "time": pl.Int64, "layer": pl.Int16}
            return pl.LazyFrame(schema=columns | {"submodule": pl.String, "active": pl.Boolean})
        return pl.scan_parquet(parts)

    @property
    def activation_rate(self) -> float | None:
        """Share of the candidate's sub-modules that ran over judged steps; None when unknown."""
        return self.measurements.leg(CANDIDATE, OFFLINE).activation_rate


def read_result(path: Path) -> tuple[Result, str]:
    """Return the result at `path` and the SHA-256 of its file.

    Raises
    ------
    RunError
        When it is absent or damaged.
    """
    try:
        content = path.read_bytes()
        return Result.from_dict(json.loads(content)), hashlib.sha256(content).hexdigest()
    except FileNotFoundError as error:
        raise RunError(f"{path.parent}: no result.json yet; run `sma-pilot judge` first") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from error


def _peaks(
    score: NDArray[np.float32], start: NDArray[np.int64], stop: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the highest score [E] within each window; -inf where nothing was scored."""
    lowest = np.float32(-np.inf)
    filled = np.where(np.isnan(score), lowest, score)
    windows = zip(start, stop, strict=True)
    return np.array([filled[a:b].max(initial=lowest) for a, b in windows], dtype=np.float32)
