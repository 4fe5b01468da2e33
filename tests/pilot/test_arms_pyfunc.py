"""A model in MLflow's pyfunc format as an arm: what it is given, and what it may answer."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tests.pilot.arm_cases import NAN, same, scores_of, some_rows, steps_of
from tests.pilot.replay_cases import make_dataset, make_plan, quiet

from sma_core.model import Inputs
from sma_pilot.arms import build_arms, fit_arms
from sma_pilot.arms.pyfunc_scorer import AnswerError, PyfuncScorer
from sma_pilot.errors import PlanError, RunError
from sma_pilot.plan import PyfuncPlan, Task

PYFUNC = {"kind": "pyfunc", "uri": "model", "trust": True, "values": "scaled"}
MLMODEL = """
flavors:
  python_function:
    loader_module: {module}
    code: code
    python_version: 3.11.0
"""
SQUARES = """
import numpy as np
class Model:
    def predict(self, rows, params=None):
        return np.nan_to_num(rows.to_numpy(dtype=float, na_value=0.0)).__pow__(2).sum(1)
def _load_pyfunc(path):
    return Model()
"""
# Python keeps a module by its name, so every model of these tests has one of its own.
_made = 0


def make_model(folder: Path, code: str) -> Path:
    """A model whose code is a file: nothing in it is pickled."""
    global _made
    _made += 1
    module = f"pyfunc_case_{_made}"
    (folder / "code").mkdir(parents=True)
    (folder / "code" / f"{module}.py").write_text(code)
    (folder / "MLmodel").write_text(MLMODEL.format(module=module))
    return folder


def answering(expression: str) -> str:
    return (
        "import numpy as np, pandas as pd\n"
        "class Model:\n    def predict(self, rows, params=None):\n"
        f"        return {expression}\n"
        "def _load_pyfunc(path):\n    return Model()\n"
    )


def plan_of(task: str = "forecast_anomaly", scaling: str = "per_entity", **arm):
    plan = make_plan({"kind": "pca"} if task == "forecast_anomaly" else {"kind": "logistic"},
                     {"kind": "transformer"}, PYFUNC | arm, task=task)  # fmt: skip
    return plan.model_copy(update={"log": plan.log.model_copy(update={"scaling": scaling})})


def fitted(plan, dataset, root: Path):
    arm = build_arms(plan, root)["baseline"]
    arm.check(dataset)
    arm.fit(dataset, root / "models", quiet)
    return arm.open(root / "models")


@pytest.fixture
def path_kept(monkeypatch):
    """MLflow puts a model's code on the path, for good."""
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.usefixtures("path_kept")
def test_a_folder_is_copied_asked_and_watched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_model(tmp_path / "model", SQUARES)
    dataset = make_dataset(tmp_path / "dataset")
    scorer = fitted(plan_of(), dataset, tmp_path)
    inputs = Inputs(some_rows(2, 20).numeric)
    whole = scores_of(scorer, inputs, [])
    assert inputs.numeric is not None
    known = inputs.numeric.isfinite().any(-1)
    squares = inputs.numeric.nan_to_num(0.0).square().sum(-1)
    same(whole, torch.where(known, squares, NAN))
    same(scores_of(scorer, inputs, [3, 4]), whole)
    same(steps_of(scorer, inputs.map(lambda rows: rows[:1])), whole[0])
    assert scorer.weight_bytes is None
    # The original may go: the pilot has its own copy, and MLflow left nothing where we stand.
    assert not (tmp_path / "mlflow.db").exists()
    assert not list(tmp_path.rglob("models/**/__pycache__"))
    (code,) = (tmp_path / "models").glob("model/code/*.py")
    code.write_text(SQUARES + "\n# changed")
    with pytest.raises(RunError, match="not those that were fetched"):
        build_arms(plan_of())["baseline"].open(tmp_path / "models")


@pytest.mark.usefixtures("path_kept")
def test_a_model_is_found_by_its_alias_and_an_alias_that_moves_reaches_no_pilot(tmp_path):
    from mlflow import MlflowClient

    from sma_pilot.mlflow_runs import make_database
    from sma_pilot.store import store_uri

    make_database(tmp_path / "mlflow.db")
    store = store_uri(tmp_path / "mlflow.db")
    client = MlflowClient(tracking_uri=store, registry_uri=store)
    client.create_registered_model("detector")
    for name, code in (("one", SQUARES), ("two", answering("np.ones(len(rows))"))):
        source = make_model(tmp_path / name, code)
        client.create_model_version("detector", source.as_uri())
    client.set_registered_model_alias("detector", "champion", "1")
    plan = plan_of(uri="models:/detector@champion", store=store)
    dataset = make_dataset(tmp_path / "dataset")
    inputs = Inputs(torch.full((1, 1, 3), 2.0))
    assert scores_of(fitted(plan, dataset, tmp_path), inputs, []).tolist() == [[12.0]]
    client.set_registered_model_alias("detector", "champion", "2")
    assert scores_of(fitted(plan, dataset, tmp_path), inputs, []).tolist() == [[12.0]]
    absent = plan_of(uri="models:/detector@nobody", store=store)
    with pytest.raises(PlanError, match=r"arms\.baseline\.uri: .*models:/detector@nobody.* cannot"):
        fitted(absent, dataset, tmp_path)
    nowhere = plan_of(uri="models:/detector@champion", store=store_uri(tmp_path / "absent.db"))
    with pytest.raises(PlanError, match="no MLflow store here"):
        fitted(nowhere, dataset, tmp_path)
    assert not (tmp_path / "absent.db").exists()


@pytest.mark.usefixtures("path_kept")
@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("np.ones(len(rows) + 1)", r"with the shape \(\d+,\); it takes one number"),
        ("np.ones((len(rows), 2))", r"with the shape \(\d+, 2\)"),
        ("1.0", r"with the shape \(\)"),
        ("['high'] * len(rows)", r"with <U4 values|with object values"),
        ("np.where(np.arange(len(rows)) == 3, np.nan, 1.0)", "answers row 3 of .* with nan"),
        ("np.full(len(rows), np.inf)", "answers row 0 of .* with inf"),
        ("pd.DataFrame({'a': 1.0, 'b': 2.0}, index=rows.index)", "with the columns a, b; name"),
        ("rows['pressure']", r"the model raised KeyError on \d+ rows: 'pressure'"),
    ],
)
def test_an_answer_that_is_no_score_is_found_on_the_first_rows(tmp_path, expression, message):
    make_model(tmp_path / "model", answering(expression))
    dataset = make_dataset(tmp_path / "dataset")
    with pytest.raises(PlanError, match=r"^arms\.baseline\.uri: model: .*" + message):
        fit_arms(plan_of(), dataset, tmp_path, tmp_path / "models", quiet)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "is no folder of an MLflow model"),
        ({"MLmodel": "flavors: {}"}, "cannot be opened as an MLflow model"),
        ({"MLmodel": ": : :"}, "cannot be opened as an MLflow model"),
        ({"MLmodel": MLMODEL.format(module="not_there")}, "ModuleNotFoundError"),
    ],
)
@pytest.mark.usefixtures("path_kept")
def test_what_is_no_model_is_told(tmp_path, files, message):
    (tmp_path / "model").mkdir()
    for name, text in files.items():
        (tmp_path / "model" / name).write_text(text)
    with pytest.raises(PlanError, match=r"arms\.baseline\.uri.*" + message):
        fitted(plan_of(), make_dataset(tmp_path / "dataset"), tmp_path)


class Asked:
    """A model that remembers what it was given."""

    def __init__(self, answer):
        self.rows: Any = None
        self._answer = answer

    def predict(self, rows):
        self.rows = rows
        return self._answer(rows)


def scorer_of(tmp_path, model, *, task: str = "forecast_anomaly", **arm) -> PyfuncScorer:
    folder = tmp_path / f"dataset {len(list(tmp_path.glob('dataset*')))}"
    card = make_dataset(folder, categorical=True, center=10.0).card
    horizon = {} if task == "forecast_anomaly" else {"horizon": "5m"}
    plan = PyfuncPlan.model_validate(PYFUNC | arm)
    return PyfuncScorer(
        model, plan, Task.model_validate({"kind": task, **horizon}), card, threads=1
    )


def test_a_table_has_the_log_s_names_units_and_words(tmp_path):
    model = Asked(lambda rows: np.zeros(len(rows)))
    scorer = scorer_of(tmp_path, model, values="log")
    numeric = torch.tensor([[[0.5, NAN, -1.0], [NAN, NAN, NAN]]])
    scores_of(scorer, Inputs(numeric, torch.tensor([[[2], [0]]])), [])
    assert isinstance(model.rows, pd.DataFrame)
    assert list(model.rows.columns) == ["x", "y", "z", "mode"]
    assert model.rows["x"].tolist()[0] == 10.5
    assert np.isnan(model.rows["y"].tolist()[0])
    assert model.rows["mode"].tolist() == ["b", "?"]
    assert model.rows["x"].dtype == np.float64


def test_a_window_is_an_array_with_the_present_row_last(tmp_path):
    model = Asked(lambda rows: rows[:, -1, 0])
    scorer = scorer_of(tmp_path, model, window=3)
    numeric = torch.arange(12.0).view(1, 4, 3)
    inputs = Inputs(numeric, torch.zeros(1, 4, 1, dtype=torch.int64))
    assert scores_of(scorer, inputs, []).tolist() == [[0.0, 3.0, 6.0, 9.0]]
    assert model.rows.shape == (4, 3, 3)
    assert model.rows.dtype == np.float32
    assert np.isnan(model.rows[0, :2]).all()
    assert model.rows[3].tolist() == numeric[0, 1:4].tolist()


def test_the_score_may_be_a_named_column_or_the_opposite_of_the_answer(tmp_path):
    table = Asked(lambda rows: pd.DataFrame({"label": 1, "p": rows["x"] / 10}))
    row = Inputs(torch.full((1, 1, 3), 2.0), torch.zeros(1, 1, 1, dtype=torch.int64))

    def score(model, **arm) -> float:
        return scores_of(scorer_of(tmp_path, model, **arm), row, []).item()

    assert score(table, output="p") == pytest.approx(0.2)
    assert score(table, output="p", negate=True) == pytest.approx(-0.2)
    assert score(table, output="p", negate=True, task="alarm") == pytest.approx(0.8)
    dictionary = Asked(lambda rows: {"s": [3.0] * len(rows)})
    assert score(dictionary) == 3.0
    with pytest.raises(AnswerError, match="no named columns"):
        score(Asked(lambda rows: np.ones(len(rows))), output="p")


def test_a_score_of_an_alarm_is_a_probability(tmp_path):
    scorer = scorer_of(tmp_path, Asked(lambda rows: np.full(len(rows), 1.5)), task="alarm")
    row = Inputs(torch.zeros(1, 1, 3), torch.zeros(1, 1, 1, dtype=torch.int64))
    with pytest.raises(AnswerError, match=r"1\.5 to 1\.5; a score of task 'alarm' lies in 0 to 1"):
        scores_of(scorer, row, [])


def test_weights_are_as_declared(tmp_path):
    scorer = scorer_of(tmp_path, Asked(None), weight_bytes=123)
    assert scorer.weight_bytes == 123
