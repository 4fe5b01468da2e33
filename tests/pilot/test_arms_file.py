"""An estimator that was fitted elsewhere: a file of skops, whose types somebody trusts."""

import json
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import skops.io
import torch
from sklearn.base import BaseEstimator
from sklearn.covariance import EllipticEnvelope
from sklearn.linear_model import LogisticRegression
from sklearn.svm import OneClassSVM
from tests.pilot.arm_cases import scores_of
from tests.pilot.replay_cases import make_dataset, make_plan, quiet

from sma_core.files import sha256_of
from sma_core.model import Inputs
from sma_pilot.arms import build_arms
from sma_pilot.errors import PlanError, RunError
from sma_pilot.plan import Plan
from sma_pilot.run_folder import write_json

GIVEN = {"kind": "sklearn", "file": "model.skops", "values": "scaled"}
ROWS = np.random.default_rng(0).normal(size=(200, 3))


class Foreign(BaseEstimator):
    """A class that is no part of scikit-learn."""

    n_features_in_ = 3

    def score_samples(self, rows):
        return np.zeros(len(rows))


def fitted(arm: dict, dataset, root: Path, *, scaling: str = "per_entity", task="forecast_anomaly"):
    other = {"kind": "pca"} if task == "forecast_anomaly" else {"kind": "logistic"}
    tables = make_plan(other, other, task=task).model_dump(mode="json")
    tables["log"]["scaling"] = scaling
    tables["arms"]["baseline"] = arm
    plan = Plan.model_validate(tables)
    own = build_arms(plan, root)["baseline"]
    own.check(dataset)
    own.fit(dataset, root / "models", quiet)
    return own.open(root / "models")


@pytest.mark.parametrize("values", ["scaled", "log"])
def test_it_is_copied_and_given_what_it_was_fitted_on(tmp_path, values):
    dataset = make_dataset(tmp_path / "dataset", center=10.0)
    model = EllipticEnvelope(random_state=0).fit(ROWS + (10.0 if values == "log" else 0.0))
    skops.io.dump(model, tmp_path / "model.skops")
    scorer = fitted(GIVEN | {"values": values}, dataset, tmp_path, scaling="global")
    skops.io.dump(OneClassSVM().fit(ROWS), tmp_path / "model.skops")  # too late
    inputs = Inputs(torch.from_numpy(ROWS[None, :20]).float())
    expected = -model.score_samples(ROWS[:20] + (10.0 if values == "log" else 0.0))
    np.testing.assert_allclose(scores_of(scorer, inputs, [])[0], expected, rtol=1e-4)


def test_a_pickle_is_not_read(tmp_path):
    (tmp_path / "model.skops").write_bytes(pickle.dumps(OneClassSVM().fit(ROWS)))
    with pytest.raises(PlanError, match=r"arms\.baseline\.file: .*cannot be read as an estimator"):
        fitted(GIVEN, make_dataset(tmp_path / "dataset"), tmp_path)


def test_a_type_that_nobody_trusts_is_named_and_not_built(tmp_path):
    dataset = make_dataset(tmp_path / "dataset")
    skops.io.dump(Foreign(), tmp_path / "model.skops")
    name = f"{Foreign.__module__}.Foreign"
    with pytest.raises(PlanError, match=r"nobody has called safe: .*Foreign; name those that you"):
        fitted(GIVEN, dataset, tmp_path)
    scorer = fitted(GIVEN | {"trusted": [name]}, dataset, tmp_path)
    assert scores_of(scorer, Inputs(torch.zeros(1, 1, 3)), []).item() == 0.0


def test_what_lies_in_a_run_folder_in_place_of_a_fit_of_ours_is_not_built(tmp_path):
    """Whoever can write there can write the card, too: types are held to scikit-learn's own."""
    dataset = make_dataset(tmp_path / "dataset")
    declared = {"kind": "sklearn", "estimator": "sklearn.svm.OneClassSVM"}
    fitted(declared, dataset, tmp_path)
    skops.io.dump(Foreign(), tmp_path / "models/model.skops")
    card = tmp_path / "models/sklearn.json"
    content = json.loads(card.read_text())
    content["weights_sha256"] = sha256_of(tmp_path / "models/model.skops")
    write_json(card, content)
    plan = make_plan({"kind": "pca"}, {"kind": "pca"}, declared)
    with pytest.raises(RunError, match="types that are not scikit-learn's"):
        build_arms(plan)["baseline"].open(tmp_path / "models")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (OneClassSVM(), "not fitted"),
        (OneClassSVM().fit(ROWS[:, :2]), "fitted on 2 columns, and rows of this log have 3"),
        (LogisticRegression().fit(ROWS, ROWS[:, 0] > 0), "LogisticRegression gives no score"),
        (
            OneClassSVM().fit(pd.DataFrame(ROWS, columns=["z", "y", "x"])),
            r"columns \['z', 'y', 'x'\], and the log gives \['x', 'y', 'z'\]",
        ),
    ],
)
def test_one_that_was_fitted_for_something_else_is_refused(tmp_path, model, message):
    skops.io.dump(model, tmp_path / "model.skops")
    with pytest.raises(PlanError, match=r"arms\.baseline\.file: .*" + message):
        fitted(GIVEN, make_dataset(tmp_path / "dataset"), tmp_path)


def test_an_absent_file_is_told(tmp_path):
    with pytest.raises(PlanError, match=r"arms\.baseline\.file: .*there is no such file"):
        fitted(GIVEN, make_dataset(tmp_path / "dataset"), tmp_path)
