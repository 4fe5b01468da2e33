"""Scores and service times that a log has from when they were made: nothing is run again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sma_core.dataset import PreparedDataset
from sma_core.model import Inputs
from sma_core.state import TensorState
from sma_pilot.arms.base import Decisions, Scores
from sma_pilot.arms.weights import is_fitted, load_fit, save_fit
from sma_pilot.errors import LogError, PlanError, RunError
from sma_pilot.logs.columns import hint
from sma_pilot.logs.files import fingerprint, open_files
from sma_pilot.logs.recorded import recorded_columns
from sma_pilot.logs.slices import iso
from sma_pilot.plan import LogSource, Plan, RecordedPlan
from sma_pilot.progress import OnProgress

_KIND = "recorded"
_SPLITS = ("validation", "judged")
_NS = {"ns": 1.0, "us": 1e3, "ms": 1e6, "s": 1e9}


class RecordedArm:
    """Kind ``recorded``: its fit reads the columns, and its scorer hands them out."""

    def __init__(self, plan: Plan, role: str, data: Path) -> None:
        self.role = role
        self._arm = plan.arm(role, RecordedPlan)
        self._task = plan.task
        self._log: LogSource = plan.log
        if self._arm.files is not None:
            self._log = plan.log.model_copy(update={"files": self._arm.files})
        self._data = data

    def check(self, dataset: PreparedDataset) -> None:
        """Refuse columns that are not there, and scores that models would read as a channel."""
        channels = {channel.name for channel in (*dataset.card.numeric, *dataset.card.categorical)}
        files = open_files(self._log.files, self._data)
        for field, column in self._columns().items():
            where = f"arms.{self.role}.{field}"
            for file in files:
                if column not in file.dtypes:
                    raise PlanError(
                        f"{where}: {file.name} has no column {column!r}; "
                        f"{hint(column, file.dtypes)}"
                    )
            if column in channels:
                raise PlanError(
                    f"{where}: column {column!r} is a channel, too, so the other arms would read "
                    "what this one said; leave it out of log.numeric and log.categorical"
                )

    def fit(self, dataset: PreparedDataset, folder: Path, on_progress: OnProgress) -> None:
        """See `Arm.fit`; LogError where a recorded value cannot be what the plan says."""
        self.check(dataset)
        files = [fingerprint(file) for file in open_files(self._log.files, self._data)]
        names = {"score", "latency", "latency_unit", "files"}
        wanted = {
            "dataset": dataset.card.digest,
            **self._arm.model_dump(mode="json", include=names),
            "sha256": [file["sha256"] for file in files],
        }
        if is_fitted(folder, _KIND, wanted):
            return
        columns = list(self._columns().values())
        found = recorded_columns(self._log, columns, self._data, dataset, _SPLITS, on_progress)
        tensors: dict[str, Tensor] = {}
        counts = {}
        for name, values in found.items():
            score = self._scores(values[:, 0], dataset, name)
            times = np.zeros(len(values), dtype=np.int64)
            if self._arm.latency is not None:
                times = self._service_ns(values[:, 1], dataset, name)
            tensors[f"{name}.score"] = torch.from_numpy(score)
            tensors[f"{name}.service_ns"] = torch.from_numpy(times)
            counts[name] = {
                "rows": len(values),
                "scores": int((~np.isnan(score)).sum()),
                "service_times": int((times > 0).sum()),
            }
            if not counts[name]["scores"]:
                raise LogError(
                    f"arms.{self.role}.score: no {name} row has a value in {columns[0]!r}, by "
                    "entity and time; a pilot needs scores of validation rows, for the threshold, "
                    "and of judged ones"
                )
        save_fit(folder, _KIND, {"fitted": wanted, "counts": counts, "files": files}, tensors)

    def open(self, folder: Path) -> "RecordedScorer":
        """See `Arm.open`."""
        _, tensors = load_fit(folder, _KIND)
        return RecordedScorer(
            tensors,
            weight_bytes=self._arm.weight_bytes,
            state_bytes_per_entity=self._arm.state_bytes_per_entity,
        )

    def _columns(self) -> dict[str, str]:
        """Columns by the field that names them."""
        given = {"score": self._arm.score, "latency": self._arm.latency}
        return {field: column for field, column in given.items() if column is not None}

    def _scores(
        self, values: NDArray[np.float64], dataset: PreparedDataset, split: str
    ) -> NDArray[np.float32]:
        wrong, need = np.isinf(values), "is no number"
        if self._task.horizon is not None:
            wrong |= (values < 0) | (values > 1)
            need = f"lies outside 0 to 1, as a score of task {self._task.kind!r} cannot"
        self._refuse(wrong, values, "score", need, dataset, split)
        return values.astype(np.float32)

    def _service_ns(
        self, values: NDArray[np.float64], dataset: PreparedDataset, split: str
    ) -> NDArray[np.int64]:
        """Service times in ns, 0 where none was recorded."""
        times = np.rint(values * _NS[self._arm.latency_unit])
        wrong = ~np.isnan(values) & ~((times >= 1) & (times < 2**62))
        self._refuse(
            wrong,
            values,
            "latency",
            "is no time longer than zero, in the unit named",
            dataset,
            split,
        )
        return np.where(np.isnan(times), 0, times).astype(np.int64)

    def _refuse(
        self,
        wrong: NDArray[np.bool_],
        values: NDArray[np.float64],
        field: str,
        why: str,
        dataset: PreparedDataset,
        split: str,
    ) -> None:
        if not wrong.any():
            return
        row = int(wrong.argmax())
        rows = dataset.split(split)
        time = int(rows.read(row, row + 1).time.item())
        owner = next(ref.entity for ref in rows.sequences if ref.start <= row < ref.stop)
        raise LogError(
            f"arms.{self.role}.{field}: column {self._columns()[field]!r}: {values[row]:g} of "
            f"entity {dataset.card.entities[owner]!r} at {iso(time)} {why} ({int(wrong.sum())} "
            f"such values among the {split} rows); mend them or leave them empty"
        )


@dataclass
class NoState(TensorState):
    """The state of what is not run."""

    rows: Tensor


class RecordedScorer:
    """Hands out what was recorded of a row; a replay copies it and asks for nothing.

    It has the shape of a `Scorer`, so that an arm is an arm, and refuses to score.

    Parameters
    ----------
    tensors : dict
        ``<split>.score`` float32 and ``<split>.service_ns`` int64 of each row, 0 = none.
    weight_bytes, state_bytes_per_entity : int or None
        As the plan declares them.
    """

    submodules: tuple[str, ...] = ()

    def __init__(
        self,
        tensors: dict[str, Tensor],
        *,
        weight_bytes: int | None,
        state_bytes_per_entity: int | None,
    ) -> None:
        self._tensors = tensors
        self.weight_bytes = weight_bytes
        self.state_bytes_per_entity = state_bytes_per_entity

    def recorded(self, split: str, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return score [T], NaN = none, and service time in ns [T], 0 = none, of some rows."""
        score, times = (self._tensors[f"{split}.{name}"] for name in ("score", "service_ns"))
        return score[start:stop], times[start:stop]

    def start(self, batch: int) -> NoState:
        """See `Scorer.start`."""
        return NoState(torch.zeros(batch, 0))

    def score(self, inputs: Inputs, state: Any) -> Scores:
        """Refuse."""
        self._refuse()

    def step(self, inputs: Inputs, state: Any) -> tuple[float, Decisions]:
        """Refuse."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise RunError("what a log has recorded cannot be asked again: this arm is not run")
