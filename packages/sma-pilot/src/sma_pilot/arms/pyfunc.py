"""A model in MLflow's pyfunc format: another one's code, asked for a score of each row.

It gets a table of rows, or with a window an array of them, and gives one number for each. What it
gives is held against that on the first rows of the train slice, before anything is fitted or timed.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sma_core.dataset import DatasetCard, PreparedDataset
from sma_core.files import sha256_of
from sma_pilot.arms.pyfunc_scorer import AnswerError, PyfuncScorer
from sma_pilot.arms.row_scorer import RowState, tells_something, windows_of
from sma_pilot.arms.weights import is_fitted, read_card, write_card
from sma_pilot.errors import PlanError, RunError, TrackingError
from sma_pilot.plan import Plan, PyfuncPlan
from sma_pilot.progress import OnProgress

_KIND = "pyfunc"
_MODEL = "model"
_CARD = f"{_MODEL}/MLmodel"
_FIRST_ROWS = 64


class PyfuncArm:
    """Kind ``pyfunc``: its fit copies the model, so that later changes cannot reach the pilot."""

    def __init__(self, plan: Plan, role: str, data: Path) -> None:
        self.role = role
        self._plan = plan
        self._arm = plan.arm(role, PyfuncPlan)
        self._data = data

    def check(self, dataset: PreparedDataset) -> None:
        """Open the model and hold what it says of the first rows against what is needed."""
        with tempfile.TemporaryDirectory() as scratch:
            self._fetch(Path(scratch) / _MODEL)
            self._try(Path(scratch) / _MODEL, dataset)

    def fit(self, dataset: PreparedDataset, folder: Path, on_progress: OnProgress) -> None:
        """See `Arm.fit`; what an alias means is decided here, once."""
        stage, rows = f"fit {self.role}", dataset.split("train").rows
        wanted = {
            "dataset": dataset.card.digest,
            **self._arm.model_dump(mode="json", exclude={"kind", "simple", "weight_bytes"}),
        }
        if is_fitted(folder, _KIND, wanted, _CARD):
            return
        on_progress(stage, 0, rows)
        shutil.rmtree(folder / _MODEL, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        self._fetch(folder / _MODEL)
        self._try(folder / _MODEL, dataset)
        card = {
            "fitted": wanted,
            "files": _hashes(folder / _MODEL),
            "data": dataset.card.to_dict(),
        }
        write_card(folder, _KIND, card, _CARD)
        on_progress(stage, rows, rows)

    def open(self, folder: Path) -> PyfuncScorer:
        """See `Arm.open`; RunError, too, when a file of the model is not what it was."""
        card = read_card(folder, _KIND, _CARD)
        if _hashes(folder / _MODEL) != card["files"]:
            raise RunError(
                f"{folder / _MODEL}: its files are not those that were fetched; delete {folder} "
                "and fit again"
            )
        return self._scorer(folder / _MODEL, DatasetCard.from_dict(card["data"]))

    def _scorer(self, model: Path, card: DatasetCard) -> PyfuncScorer:
        from sma_pilot.mlflow_models import open_model  # MLflow takes seconds to import

        threads = self._plan.replay.threads
        return PyfuncScorer(open_model(model), self._arm, self._plan.task, card, threads=threads)

    def _fetch(self, folder: Path) -> None:
        where = f"arms.{self.role}.uri"
        if self._arm.store is None:
            source = self._data / self._arm.uri
            if not (source / "MLmodel").is_file():
                raise PlanError(
                    f"{where}: {source} is no folder of an MLflow model (it has no file MLmodel)"
                )
            shutil.copytree(source, folder, ignore=shutil.ignore_patterns("__pycache__"))
            return
        from sma_pilot.mlflow_models import fetch_model

        try:
            fetch_model(self._arm.uri, self._arm.store, folder)
        except TrackingError as error:
            raise PlanError(f"{where}: {error}") from error
        if not (folder / "MLmodel").is_file():
            raise PlanError(f"{where}: what {self._arm.uri!r} names is no MLflow model")

    def _try(self, model: Path, dataset: PreparedDataset) -> None:
        where = f"arms.{self.role}.uri: {self._arm.uri}"
        try:
            scorer = self._scorer(model, dataset.card)
        except TrackingError as error:
            raise PlanError(f"{where}: {error}") from error
        rows = dataset.split("train").read(0, min(_FIRST_ROWS, dataset.split("train").rows))
        numeric = rows.numeric
        if numeric is None:
            numeric = torch.zeros(len(rows.time), 0)
        past = torch.full((1, self._arm.window - 1, numeric.shape[1]), torch.nan)
        windows = windows_of(numeric[None], RowState(past, torch.zeros(1)))[0]
        categorical = None if rows.categorical is None else rows.categorical.long()
        known = tells_something(windows, categorical)
        try:
            scorer.ask(windows[known], _chosen(categorical, known))
        except AnswerError as error:
            raise PlanError(f"{where}: {error}") from error


def _chosen(categorical: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if categorical is None else categorical[rows]


def _hashes(folder: Path) -> dict[str, Any]:
    """Return the SHA-256 of each file of a model, by its path in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}
