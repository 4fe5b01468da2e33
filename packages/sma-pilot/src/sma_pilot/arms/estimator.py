"""An estimator of scikit-learn: declared in the plan and fitted here, or fitted elsewhere.

Neither is ever pickled. A fitted estimator is kept in the format of skops, which builds none but
named types: those of scikit-learn, numpy and scipy for one that was fitted here; those that skops
trusts and the plan names for one that came from elsewhere.
"""

import importlib
import inspect
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sma_core.dataset import DatasetCard, PreparedDataset
from sma_core.files import sha256_of
from sma_pilot.arms.estimator_scorer import Design, EstimatorScorer, answer_of
from sma_pilot.arms.training_rows import TrainingRows, sample_rows
from sma_pilot.arms.weights import is_fitted, read_card, write_card
from sma_pilot.errors import PlanError, RunError
from sma_pilot.plan import Plan, SklearnPlan
from sma_pilot.progress import OnProgress
from sma_pilot.targets import class_scores

_KIND = "sklearn"
_FILE = "model.skops"
_OURS = ("sklearn.", "numpy.", "scipy.")
_NEEDED = {
    "forecast_anomaly": "an outlier detector or a density, with `score_samples`, such as "
    "sklearn.ensemble.IsolationForest (sklearn.neighbors.LocalOutlierFactor needs novelty = true)",
    "alarm": "a classifier with `predict_proba`, or a regressor",
    "remaining_life": "a classifier with `predict_proba`, or a regressor",
}


class SklearnArm:
    """Kind ``sklearn``."""

    def __init__(self, plan: Plan, role: str, data: Path) -> None:
        self.role = role
        self._plan = plan
        self._arm = plan.arm(role, SklearnPlan)
        self._data = data

    def check(self, dataset: PreparedDataset) -> None:
        """See `Arm.check`; nothing of a file is built before its types are known and trusted."""
        if self._arm.file is None:
            self._require_answer(self._declared(), "estimator")
            return
        model = self._load(self._data / self._arm.file, self._arm.trusted)
        self._require_answer(model, "file")
        self._require_columns(model, dataset.card)

    def fit(self, dataset: PreparedDataset, folder: Path, on_progress: OnProgress) -> None:
        """See `Arm.fit`; a file is copied, so that later changes to it cannot reach the pilot."""
        stage = f"fit {self.role}"
        wanted: dict[str, Any] = {
            "dataset": dataset.card.digest,
            "seed": self._plan.seed,
            **self._arm.model_dump(mode="json", exclude={"kind", "simple"}),
        }
        if self._arm.file is not None:
            self.check(dataset)
            wanted["file_sha256"] = sha256_of(self._data / self._arm.file)
        if is_fitted(folder, _KIND, wanted, _FILE):
            return
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{_FILE}"
        rows = None
        if self._arm.file is not None:
            shutil.copyfile(self._data / self._arm.file, temporary)
        else:
            rows = self._fit_declared(dataset, temporary, stage, on_progress)
        temporary.replace(folder / _FILE)
        columns = Design(dataset.card, self._arm.window).columns
        card = {"fitted": wanted, "rows": rows, "columns": columns, "data": dataset.card.to_dict()}
        write_card(folder, _KIND, card, _FILE)
        total = dataset.split("train").rows
        on_progress(stage, total, total)

    def open(self, folder: Path) -> EstimatorScorer:
        """See `Arm.open`."""
        card = read_card(folder, _KIND, _FILE)
        design = Design(
            DatasetCard.from_dict(card["data"]),
            self._arm.window,
            in_log_units=self._arm.values == "log",
        )
        path = folder / _FILE
        model = self._load(path, self._arm.trusted if self._arm.file else _ours(path))
        if hasattr(model, "feature_names_in_"):
            model.feature_names_in_ = None  # they were compared, and rows come without names
        return EstimatorScorer(
            model,
            design,
            self._plan.task,
            weight_bytes=_array_bytes(path),
            threads=self._plan.replay.threads,
        )

    def _declared(self) -> Any:
        """Return the declared estimator, not fitted."""
        from sklearn.base import BaseEstimator

        where, name = f"arms.{self.role}", self._arm.estimator or ""
        module, _, attribute = name.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise PlanError(
                f"{where}.estimator: scikit-learn has no {name!r} ({error}); name a class such as "
                "sklearn.ensemble.IsolationForest"
            ) from error
        if not (isinstance(found, type) and issubclass(found, BaseEstimator)):
            raise PlanError(f"{where}.estimator: {name!r} is no estimator")
        known = inspect.signature(found).parameters
        for parameter in self._arm.params:
            if parameter not in known:
                raise PlanError(
                    f"{where}.params.{parameter}: {name} has no such parameter; it has "
                    f"{', '.join(known)}"
                )
        seed = {"random_state": self._plan.seed % 2**32} if "random_state" in known else {}
        try:
            model = found(**{**seed, **self._arm.params})
            model._validate_params()
        except (TypeError, ValueError) as error:
            raise PlanError(f"{where}.params: {error}") from error
        return model

    def _fit_declared(
        self, dataset: PreparedDataset, path: Path, stage: str, on_progress: OnProgress
    ) -> int:
        """Fit the declared estimator, save it, and return the number of rows it was fitted on."""
        import skops.io
        from sklearn.exceptions import ConvergenceWarning
        from threadpoolctl import threadpool_limits

        model, arm = self._declared(), self._arm
        sample = sample_rows(
            dataset.split("train"),
            window=arm.window,
            most=arm.fit_rows,
            learns=self._plan.task.horizon is not None,
            seed=self._plan.seed,
            stage=stage,
            on=on_progress,
        )
        rows = Design(dataset.card, arm.window)(sample.windows, sample.categorical)
        answers = self._answers(model, sample)
        with threadpool_limits(self._plan.replay.threads), warnings.catch_warnings():
            # That more iterations would have helped is the plan's to decide; its scores will tell.
            warnings.simplefilter("ignore", ConvergenceWarning)
            try:
                model.fit(rows) if answers is None else model.fit(rows, answers)
            except (TypeError, ValueError) as error:
                raise PlanError(
                    f"arms.{self.role}.params: {arm.estimator} cannot be fitted on {len(rows)} "
                    f"training rows: {error}"
                ) from error
        skops.io.dump(model, path)
        return len(rows)

    def _answers(self, model: Any, sample: TrainingRows) -> NDArray[Any] | None:
        """Return what the rows are taught; None for an outlier detector."""
        if self._plan.task.horizon is None:
            return None
        assert sample.target is not None  # noqa: S101  (a task with a horizon has classes)
        target = sample.target.numpy()
        if len(np.unique(target)) < 2:
            raise PlanError(
                f"arms.{self.role}: all {len(target)} training rows are of one class, so nothing "
                "can be learned; move slices.validation_from or change task.horizon"
            )
        if answer_of(model, self._plan.task) == "classes":
            return target
        return np.array(class_scores(self._plan.task))[target]

    def _require_answer(self, model: Any, field: str) -> None:
        if answer_of(model, self._plan.task) is None:
            kind = self._plan.task.kind
            raise PlanError(
                f"arms.{self.role}.{field}: {type(model).__name__} gives no score for task "
                f"{kind!r}; it takes {_NEEDED[kind]}"
            )

    def _require_columns(self, model: Any, card: DatasetCard) -> None:
        """Refuse a fitted estimator that was fitted on other columns than it will be given."""
        where = f"arms.{self.role}.file: {self._arm.file}"
        columns = Design(card, self._arm.window).columns
        expected = getattr(model, "n_features_in_", None)
        if expected is None:
            raise PlanError(f"{where}: not fitted, or it does not say on how many columns")
        if expected != columns:
            raise PlanError(
                f"{where}: it was fitted on {expected} columns, and rows of this log have {columns}"
            )
        names = getattr(model, "feature_names_in_", None)
        channels = [channel.name for channel in card.numeric]
        of_rows = self._arm.window == 1 and not card.categorical
        if names is not None and of_rows and list(names) != channels:
            raise PlanError(
                f"{where}: it was fitted on the columns {list(names)}, and the log gives "
                f"{channels}; they must be the same, in the same order"
            )

    def _load(self, path: Path, trusted: tuple[str, ...]) -> Any:
        """Build an estimator from a file, if it holds no other types than those it may."""
        import skops.io

        where = f"arms.{self.role}.file: {path}"
        try:
            others = sorted(set(skops.io.get_untrusted_types(file=path)) - set(trusted))
            if others:
                raise PlanError(
                    f"{where}: holds types that nobody has called safe: {', '.join(others)}; "
                    "name those that you trust in `trusted`"
                )
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # of another version of scikit-learn, for one
                model = skops.io.load(path, trusted=list(trusted))
        except PlanError:
            raise
        except FileNotFoundError as error:
            raise PlanError(f"{where}: there is no such file") from error
        except Exception as error:
            # Whatever a damaged or hostile file has skops stumble over.
            raise PlanError(
                f"{where}: cannot be read as an estimator saved by skops.io.dump ({error})"
            ) from error
        return model


def _ours(path: Path) -> tuple[str, ...]:
    """Return the types of an estimator that was fitted here; RunError if it holds others."""
    import skops.io

    types = tuple(skops.io.get_untrusted_types(file=path))
    foreign = [name for name in types if not name.startswith(_OURS)]
    if foreign:
        raise RunError(
            f"{path}: holds types that are not scikit-learn's: {', '.join(foreign)}; it is not the "
            "estimator that was fitted here; delete its folder and fit again"
        )
    return types


def _array_bytes(path: Path) -> int:
    """Count the bytes of the arrays that an estimator consists of, as they lie in memory."""
    with zipfile.ZipFile(path) as archive:
        return sum(part.file_size for part in archive.infolist() if part.filename.endswith(".npy"))
