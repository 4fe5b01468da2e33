"""Arms that fit on rows, and the GRU: k-means, estimators of scikit-learn; streams and refusals."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.ensemble import IsolationForest, RandomForestClassifier
from sklearn.linear_model import Ridge
from tests.pilot.arm_cases import NAN, same, scores_of, some_rows, steps_of
from tests.pilot.replay_cases import SMALL_TRAINING, USUAL, make_dataset, make_plan, quiet
from tests.tolerances import assert_close

from sma_core.model import Inputs
from sma_pilot.arms import build_arms, fit_arms
from sma_pilot.errors import PlanError, RunError
from sma_pilot.targets import class_scores

FOREST: dict[str, Any] = {
    "kind": "sklearn",
    "estimator": "sklearn.ensemble.IsolationForest",
    "params": {"n_estimators": 5, "max_samples": 64},
    "window": 2,
}
CLASSIFIER = {
    "kind": "sklearn",
    "estimator": "sklearn.ensemble.RandomForestClassifier",
    "params": {"n_estimators": 5},
    "window": 3,
}
REGRESSOR = {"kind": "sklearn", "estimator": "sklearn.linear_model.Ridge"}
ARMS = {
    "forecast_anomaly/gru": {"kind": "gru", "model": {"width": 6}, "training": SMALL_TRAINING},
    "forecast_anomaly/kmeans": {"kind": "kmeans", "clusters": 3},
    "forecast_anomaly/kmeans of windows": {"kind": "kmeans", "clusters": 3, "window": 4},
    "forecast_anomaly/outliers": FOREST,
    "forecast_anomaly/density": {
        "kind": "sklearn",
        "estimator": "sklearn.mixture.GaussianMixture",
        "params": {"n_components": 2},
    },
    "alarm/gru": {"kind": "gru", "model": {"width": 6}, "training": SMALL_TRAINING},
    "alarm/classifier": CLASSIFIER,
    "alarm/regressor": REGRESSOR,
}


def plan_of(task: str, arm: dict, **overrides):
    incumbent = {"kind": "gru", "model": {"width": 4}, "training": SMALL_TRAINING}
    return make_plan(candidate=arm, incumbent=incumbent, task=task, **overrides)


def fit(plan, dataset, root, role: str = "candidate") -> Any:
    """Fit one arm of a plan and open it."""
    arm: Any = build_arms(plan, root)[role]
    arm.check(dataset)
    arm.fit(dataset, root / role, quiet)
    return arm.open(root / role)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    root = tmp_path_factory.mktemp("fitted")
    dataset = make_dataset(root / "dataset", categorical=True)
    return {
        name: fit(plan_of(name.split("/")[0], arm, smoothing=3), dataset, root / name)
        for name, arm in ARMS.items()
    }


@pytest.mark.parametrize("name", ARMS)
@torch.inference_mode()
def test_chunks_lanes_and_single_steps_give_the_same_scores(fitted, name):
    scorer, inputs = fitted[name], some_rows(3, 30)
    whole = scores_of(scorer, inputs, [])
    assert whole.shape == (3, 30)
    assert whole.dtype == torch.float32
    assert whole[:, 5:].isfinite().all()
    same(scores_of(scorer, inputs, [1, 2, 17]), whole)
    for lane in range(3):
        alone = inputs.map(lambda rows, lane=lane: rows[lane : lane + 1])
        same(steps_of(scorer, alone), whole[lane])
    state = scorer.start(3)
    scorer.score(inputs.map(lambda rows: rows[:, :20]), state)
    picked = state.select(torch.tensor([2, 0]))
    rest = inputs.map(lambda rows: rows[[2, 0], 20:])
    same(scorer.score(rest, picked).score, whole[[2, 0], 20:])


@pytest.mark.parametrize("name", ARMS)
def test_no_score_knows_a_later_row(fitted, name):
    inputs = some_rows(1, 20)
    assert inputs.numeric is not None
    later = inputs.numeric.clone()
    later[:, 12:] = 9.0
    same(
        scores_of(fitted[name], Inputs(later, inputs.categorical), [])[:, :12],
        scores_of(fitted[name], inputs, [])[:, :12],
    )


@pytest.mark.parametrize("name", ARMS)
def test_weights_and_state_are_weighed(fitted, name):
    scorer = fitted[name]
    assert scorer.start(4).nbytes == 4 * scorer.start(1).nbytes > 0
    assert scorer.weight_bytes > 0
    assert scorer.submodules == ()


def numeric_rows(dataset: Any) -> np.ndarray:
    split = dataset.split("train")
    return split.read(0, split.rows).numeric.numpy()


def test_kmeans_is_that_of_scikit_learn(tmp_path):
    dataset = make_dataset(tmp_path / "dataset", missing=False)
    scorer = fit(plan_of("forecast_anomaly", {"kind": "kmeans", "clusters": 4}), dataset, tmp_path)
    rows = numeric_rows(dataset)
    expected = KMeans(4, n_init=4, random_state=0).fit(rows)  # pyright: ignore[reportArgumentType]
    own = scores_of(scorer, Inputs(torch.from_numpy(rows[None])), [])[0]
    squares = np.square(expected.transform(rows)).min(1) / 3
    assert_close(own, torch.from_numpy(squares).float(), "float32")


def test_kmeans_looks_for_the_nearest_by_what_is_there(tmp_path):
    """Two points; of a row with one value that value alone decides, and is all that is averaged."""
    dataset = make_dataset(tmp_path / "dataset", missing=False)
    scorer = fit(plan_of("forecast_anomaly", {"kind": "kmeans", "clusters": 2}), dataset, tmp_path)
    centres = scorer._centres
    value = centres[1, 1].item() + 0.25
    row = torch.tensor([[[NAN, value, NAN]]])
    (own,) = scores_of(scorer, Inputs(row), [])[0].tolist()
    assert own == pytest.approx(min((value - one) ** 2 for one in centres[:, 1].tolist()))
    assert scores_of(scorer, Inputs(torch.full((1, 1, 3), NAN)), []).isnan().all()


def test_more_clusters_than_different_rows_are_not_made_up(tmp_path):
    dataset = make_dataset(tmp_path / "dataset", missing=False)
    with pytest.raises(PlanError, match=r"arms\.candidate\.clusters: 301 .* has 300 rows"):
        fit(plan_of("forecast_anomaly", {"kind": "kmeans", "clusters": 301}), dataset, tmp_path)


def test_an_outlier_detector_scores_as_scikit_learn_does(tmp_path):
    dataset = make_dataset(tmp_path / "dataset", missing=False)
    arm = {**FOREST, "window": 1}
    scorer = fit(plan_of("forecast_anomaly", arm, seed=5), dataset, tmp_path)
    rows = numeric_rows(dataset).astype(np.float64)
    settings: dict[str, Any] = FOREST["params"]
    model = IsolationForest(**settings, random_state=5).fit(rows)
    own = scores_of(scorer, Inputs(torch.from_numpy(rows[None]).float()), [])[0]
    assert_close(own, torch.from_numpy(-model.score_samples(rows)).float(), "float32")


def test_a_window_is_the_rows_before_oldest_first_and_categories_are_of_the_present(tmp_path):
    dataset = make_dataset(tmp_path / "dataset", categorical=True)
    scorer = fit(plan_of("alarm", CLASSIFIER), dataset, tmp_path)
    split = dataset.split("train")
    _, first, last = split.sequences[0]
    rows = split.read(first, last)
    assert rows.numeric is not None
    assert rows.categorical is not None
    padded = np.concatenate([np.zeros((2, 3)), rows.numeric.nan_to_num(0.0).double().numpy()])
    categories = np.eye(3)[rows.categorical[:, 0].numpy()]
    design = np.concatenate([padded[:-2], padded[1:-1], padded[2:], categories], 1)
    inputs = Inputs(rows.numeric[None], rows.categorical[None].long())
    own = scores_of(scorer, inputs, [])[0].numpy()
    arm: Any = build_arms(plan_of("alarm", CLASSIFIER))["candidate"]
    model = arm._load(tmp_path / "candidate/model.skops", ("sklearn.tree._tree.Tree",))
    np.testing.assert_allclose(own, model.predict_proba(design)[:, 1], rtol=1e-6)


def test_a_remaining_life_is_taught_as_classes_or_as_a_share_of_the_horizon(tmp_path):
    dataset = make_dataset(tmp_path / "dataset", missing=False)
    rows = numeric_rows(dataset).astype(np.float64)
    split: Any = dataset.split("train")
    target = split.read(0, len(rows)).target.numpy()
    base = plan_of("alarm", REGRESSOR)
    task = base.task.model_copy(update={"kind": "remaining_life"})
    quality = base.quality.model_copy(update={"headline": "mae"})
    scores = np.array(class_scores(task))
    for arm in (REGRESSOR, {**CLASSIFIER, "window": 1}):
        plan = plan_of("alarm", arm).model_copy(update={"task": task, "quality": quality})
        scorer = fit(plan, dataset, tmp_path / arm["estimator"])
        own = scores_of(scorer, Inputs(torch.from_numpy(rows[None]).float()), [])[0].numpy()
        if arm is REGRESSOR:
            expected = Ridge(random_state=0).fit(rows, scores[target]).predict(rows).clip(0, 1)
        else:
            forest = RandomForestClassifier(n_estimators=5, random_state=0).fit(rows, target)
            expected = forest.predict_proba(rows) @ scores[:2]
        np.testing.assert_allclose(own, expected, rtol=1e-5)


def test_few_rows_are_drawn_from_many_by_the_seed(tmp_path):
    """Whatever their number, no row is drawn for where it lies."""
    dataset = make_dataset(tmp_path / "dataset")
    arm = {"kind": "kmeans", "clusters": 2, "fit_rows": 100}
    first = fit(plan_of("forecast_anomaly", arm), dataset, tmp_path / "a")
    again = fit(plan_of("forecast_anomaly", arm), dataset, tmp_path / "b")
    other = fit(plan_of("forecast_anomaly", arm, seed=1), dataset, tmp_path / "c")
    assert first._centres.equal(again._centres)
    assert not first._centres.equal(other._centres)


@pytest.mark.parametrize("arm", [ARMS["forecast_anomaly/kmeans"], FOREST])
def test_a_finished_fit_is_kept_and_a_damaged_one_made_again(tmp_path, arm):
    dataset = make_dataset(tmp_path / "dataset")
    plan = plan_of("forecast_anomaly", arm)
    fit(plan, dataset, tmp_path)
    (weights,) = (tmp_path / "candidate").glob("*.s*[st]")
    before = weights.stat().st_mtime_ns
    fit(plan, dataset, tmp_path)
    assert weights.stat().st_mtime_ns == before
    weights.write_bytes(weights.read_bytes()[:-9] + b"\0" * 9)
    with pytest.raises(RunError, match="not those of the card"):
        build_arms(plan)["candidate"].open(tmp_path / "candidate")
    fit(plan, dataset, tmp_path)


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("forecast_anomaly", {"estimator": "sklearn.ensemble.Forest"}, r"\.estimator: .* has no"),
        ("forecast_anomaly", {"estimator": "sklearn.nowhere.X"}, r"\.estimator: .* has no"),
        ("forecast_anomaly", {"estimator": "sklearn.base.clone"}, "is no estimator"),
        ("forecast_anomaly", {"params": {"trees": 5}}, r"\.params\.trees: .* no such parameter"),
        ("forecast_anomaly", {"params": {"n_estimators": -1}}, r"\.params: .*n_estimators"),
        (
            "forecast_anomaly",
            {"estimator": "sklearn.neighbors.LocalOutlierFactor", "params": {}},
            "needs novelty = true",
        ),
        ("alarm", {}, r"IsolationForest gives no score for task 'alarm'; it takes a classifier"),
        (
            "forecast_anomaly",
            {"estimator": "sklearn.neighbors.LocalOutlierFactor", "params": {"novelty": True,
             "metric": "haversine"}},
            r"\.params: sklearn\.neighbors\.LocalOutlierFactor cannot be fitted on 100",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_fitted_is_told_by_its_field(tmp_path, task, changes, message):
    dataset = make_dataset(tmp_path / "dataset", USUAL, missing=False)
    plan = plan_of(task, {**FOREST, "window": 1, "fit_rows": 300, **changes})
    with pytest.raises(PlanError, match=r"^arms\.candidate.*" + message.replace("100", "")):
        fit_arms(plan, dataset, tmp_path, tmp_path / "models", quiet)
    assert not list(tmp_path.glob("models/candidate/sklearn.json"))


def test_one_class_teaches_nothing(tmp_path):
    quiet_rows = (("train", 0, 5, 30), ("validation", 0, 60, 9), ("judged", 0, 100, 9))
    dataset = make_dataset(tmp_path / "dataset", quiet_rows)
    with pytest.raises(PlanError, match=r"all \d+ training rows are of one class"):
        fit(plan_of("alarm", CLASSIFIER), dataset, tmp_path)
