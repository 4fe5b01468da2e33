"""The arms of a pilot, by kind: a new kind is one class and one line here."""

from pathlib import Path

from sma_core.dataset import PreparedDataset
from sma_pilot.arms.base import Arm, Decisions, Scorer, Scores
from sma_pilot.arms.count_logistic import CountLogisticArm
from sma_pilot.arms.count_pca import CountPCAArm
from sma_pilot.arms.estimator import SklearnArm
from sma_pilot.arms.kmeans import KMeansArm
from sma_pilot.arms.logistic import LogisticArm
from sma_pilot.arms.neural import CheckpointArm, DenseTwinArm, GRUArm, SMAArm, TransformerArm
from sma_pilot.arms.pca import PCAArm
from sma_pilot.arms.pyfunc import PyfuncArm
from sma_pilot.arms.recorded import RecordedArm
from sma_pilot.arms.ridge import RidgeArm
from sma_pilot.plan import Plan
from sma_pilot.progress import OnProgress

__all__ = ["ARMS", "Arm", "Decisions", "Scorer", "Scores", "build_arms", "fit_arms"]

ARMS = {
    "sma": SMAArm,
    "dense_twin": DenseTwinArm,
    "transformer": TransformerArm,
    "gru": GRUArm,
    "checkpoint": CheckpointArm,
    "pca": PCAArm,
    "kmeans": KMeansArm,
    "logistic": LogisticArm,
    "sklearn": SklearnArm,
    "pyfunc": PyfuncArm,
    "recorded": RecordedArm,
    "ridge": RidgeArm,
    "count_pca": CountPCAArm,
    "count_logistic": CountLogisticArm,
}


def build_arms(plan: Plan, data: Path = Path()) -> dict[str, Arm]:
    """Return the plan's arms by role.

    Parameters
    ----------
    plan : Plan
    data : Path
        Folder that relative paths of the plan start from; only fitting reads from it.
    """
    return {role: ARMS[arm.kind](plan, role, data) for role, arm in plan.named_arms().items()}


def fit_arms(
    plan: Plan, dataset: PreparedDataset, data: Path, models: Path, on_progress: OnProgress
) -> None:
    """Fit every arm into its folder under `models`.

    All arms are checked first, so that an error in the last one does not cost the fit of the first.

    Raises
    ------
    PlanError
        A field of an arm is wrong; the message names it.
    """
    arms = build_arms(plan, data)
    for arm in arms.values():
        arm.check(dataset)
    for role, arm in arms.items():
        arm.fit(dataset, models / role, on_progress)
