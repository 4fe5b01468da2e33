"""Every kind of arm: what it scores, that it streams as it scores offline, what it refuses."""

import json
from typing import get_args

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from tests.pilot.arm_cases import NAN, same, scores_of, some_rows
from tests.pilot.replay_cases import (
    SMALL_MODEL,
    SMALL_TRAINING,
    SMALL_TRANSFORMER,
    make_dataset,
    make_plan,
    quiet,
)
from tests.tolerances import assert_close

from sma_core.checkpoint import load_checkpoint
from sma_core.model import Inputs
from sma_pilot.arms import ARMS, build_arms, fit_arms, logistic
from sma_pilot.arms.forecast_error import Smoother, mean_squared_error
from sma_pilot.arms.pca import PCAScorer
from sma_pilot.errors import PlanError, RunError
from sma_pilot.plan import ArmPlan

SMA = {"kind": "sma", "model": SMALL_MODEL, "training": SMALL_TRAINING}
TRANSFORMER = {"kind": "transformer", "model": SMALL_TRANSFORMER, "training": SMALL_TRAINING}
KINDS = ["forecast_anomaly/sma", "forecast_anomaly/dense_twin", "forecast_anomaly/transformer"]
KINDS += ["forecast_anomaly/pca", "alarm/sma", "alarm/dense_twin", "alarm/transformer"]
KINDS += ["alarm/logistic"]
ROLES = {"sma": "candidate", "transformer": "incumbent", "dense_twin": "incumbent"}


def plan_for(task: str, **overrides):
    baseline = {"kind": "logistic"} if task == "alarm" else {"kind": "pca", "components": 1}
    return make_plan(baseline=baseline, task=task, **overrides)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A scorer of every kind, by ``task/kind``, fitted on data with both kinds of channels."""
    root = tmp_path_factory.mktemp("fitted")
    dataset = make_dataset(root / "dataset", categorical=True)
    scorers = {}
    for task in ("forecast_anomaly", "alarm"):
        for incumbent in ({"kind": "dense_twin"}, TRANSFORMER):
            plan = plan_for(task, incumbent=incumbent, smoothing=3)
            models = root / task / incumbent["kind"]
            fit_arms(plan, dataset, root, models, quiet)
            for role, arm in build_arms(plan).items():
                kind = plan.named_arms()[role].kind
                scorers[f"{task}/{kind}"] = arm.open(models / role)
    return scorers


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_chunks_lanes_and_single_steps_give_the_same_scores(fitted, kind):
    scorer = fitted[kind]
    inputs = some_rows(3, 50)
    whole = scores_of(scorer, inputs, [])
    assert whole.shape == (3, 50)
    assert whole.dtype == torch.float32
    same(scores_of(scorer, inputs, [1, 2, 20, 49]), whole)
    for lane in range(3):
        alone = inputs.map(lambda rows, lane=lane: rows[lane : lane + 1])
        state = scorer.start(1)
        steps = [
            scorer.step(alone.map(lambda rows, t=t: rows[:, t : t + 1]), state)[0]
            for t in range(50)
        ]
        assert all(isinstance(score, float) for score in steps)
        same(torch.tensor(steps), whole[lane])


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_a_selected_state_goes_on_alone_and_leaves_the_others(fitted, kind):
    scorer = fitted[kind]
    inputs = some_rows(3, 40)
    whole = scores_of(scorer, inputs, [])
    first = inputs.map(lambda rows: rows[:, :25])
    rest = inputs.map(lambda rows: rows[:, 25:])
    state = scorer.start(3)
    scorer.score(first, state)
    picked = state.select(torch.tensor([2, 0]))
    of_two = scorer.score(rest.map(lambda rows: rows[[2, 0]]), picked).score
    same(of_two, whole[[2, 0], 25:])
    same(scorer.score(rest, state).score, whole[:, 25:])


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_state_are_weighed(fitted, kind):
    scorer = fitted[kind]
    one, four = scorer.start(1).nbytes, scorer.start(4).nbytes
    assert four == 4 * one > 0
    assert scorer.weight_bytes > 0


def test_neural_weights_are_those_of_the_checkpoint(tmp_path):
    dataset = make_dataset(tmp_path / "dataset")
    plan = make_plan()
    fit_arms(plan, dataset, tmp_path, tmp_path / "models", quiet)
    model = load_checkpoint(tmp_path / "models" / "candidate").model
    stored = sum(t.nbytes for t in model.state_dict().values())
    scorer = build_arms(plan)["candidate"].open(tmp_path / "models" / "candidate")
    assert (scorer.weight_bytes or 0) >= stored


def test_only_the_first_row_and_empty_rows_of_a_forecast_have_no_score(fitted):
    inputs = some_rows(2, 30)
    assert inputs.numeric is not None
    unscored = inputs.numeric.isnan().all(-1)
    assert unscored[:, 4].all()
    same(scores_of(fitted["forecast_anomaly/pca"], inputs, [7]).isnan().float(), unscored.float())
    unscored[:, 0] = True
    for kind in ("sma", "dense_twin", "transformer"):
        got = scores_of(fitted[f"forecast_anomaly/{kind}"], inputs, [7]).isnan()
        assert got.equal(unscored)


def test_a_forecast_score_is_the_error_of_the_prediction_made_one_row_before(tmp_path):
    dataset = make_dataset(tmp_path / "dataset", missing=False)
    plan = make_plan()
    fit_arms(plan, dataset, tmp_path, tmp_path / "models", quiet)
    scorer = build_arms(plan)["candidate"].open(tmp_path / "models" / "candidate")
    model = load_checkpoint(tmp_path / "models" / "candidate").model
    numeric = some_rows(1, 20).numeric
    assert numeric is not None
    numeric = numeric.nan_to_num(0.5)
    with torch.inference_mode():
        prediction = model(Inputs(numeric)).prediction
    expected = (numeric[:, 1:] - prediction[:, :-1]).square().mean(-1)
    assert_close(scores_of(scorer, Inputs(numeric), [9])[:, 1:], expected, "float32")


def test_an_alarm_is_a_probability_and_an_empty_row_has_none(tmp_path):
    dataset = make_dataset(tmp_path / "dataset")
    plan = plan_for("alarm")
    fit_arms(plan, dataset, tmp_path, tmp_path / "models", quiet)
    inputs = Inputs(some_rows(2, 30).numeric)
    assert inputs.numeric is not None
    for role, arm in build_arms(plan).items():
        scores = scores_of(arm.open(tmp_path / "models" / role), inputs, [])
        assert scores.isnan().equal(inputs.numeric.isnan().all(-1))
        known = scores[~scores.isnan()]
        assert ((known >= 0) & (known <= 1)).all()


def test_routes_are_named_for_arms_that_route(fitted):
    assert fitted["alarm/sma"].submodules == ("gated_attention",)
    assert fitted["alarm/transformer"].submodules == ()
    inputs = some_rows(2, 12)
    with torch.inference_mode():
        scores = fitted["alarm/dense_twin"].score(inputs, fitted["alarm/dense_twin"].start(2))
    assert len(scores.decisions) == 2
    assert all(decision.active.all() for decision in scores.decisions)


# The error and its smoothing.


def test_one_channel_cannot_drown_the_others():
    observed = torch.tensor([[1e6, 1.0], [NAN, 3.0], [NAN, NAN], [float("inf"), 1.0]])
    error = mean_squared_error(observed, torch.zeros(4, 2))
    assert_close(error[[0, 1, 3]], torch.tensor([(100 + 1) / 2, 9.0, 1.0]), "float32")
    assert error[2].isnan()


@pytest.mark.parametrize("span", [1, 2, 5, 40])
def test_smoothing_in_chunks_and_steps_is_the_plain_recursion(span):
    error = torch.rand(2, 60, generator=torch.Generator().manual_seed(1))
    error[0, [0, 5, 6, 30, 59]] = NAN
    error[1, :10] = NAN
    smoother = Smoother(span)
    weight = 2 / (span + 1)
    expected = torch.full_like(error, NAN, dtype=torch.float64)
    for lane in range(2):
        mean = None
        for t, value in enumerate(error[lane].tolist()):
            if value == value:
                mean = value if mean is None else mean + weight * (value - mean)
                expected[lane, t] = mean
    state = smoother.start(2)
    same(torch.cat([smoother.chunk(e, state) for e in error.split(7, 1)], 1), expected.float())
    for lane in range(2):
        one = smoother.start(1)
        steps = torch.tensor([smoother.step(value, one) for value in error[lane].tolist()])
        same(steps, expected[lane].float())


# The baselines.


def test_pca_is_that_of_scikit_learn(tmp_path):
    dataset = make_dataset(tmp_path / "dataset", missing=False)
    plan = make_plan(baseline={"kind": "pca", "components": 2})
    arm = build_arms(plan)["baseline"]
    arm.fit(dataset, tmp_path / "pca", quiet)
    train = dataset.split("train")
    rows = train.read(0, train.rows).numeric
    assert rows is not None
    reference = PCA(2).fit(rows.double().numpy())
    test = some_rows(1, 30).numeric
    assert test is not None
    test = test.nan_to_num(0.3)
    usual = reference.inverse_transform(reference.transform(test[0].double().numpy()))
    expected = ((test[0].numpy() - usual) ** 2).mean(1)
    scores = scores_of(arm.open(tmp_path / "pca"), Inputs(test), [])
    assert_close(scores[0], torch.from_numpy(expected), "float32")


def test_pca_of_one_channel_is_the_distance_from_its_mean(tmp_path):
    dataset = make_dataset(tmp_path / "dataset", names=("x", "y"))
    arm = build_arms(make_plan(baseline={"kind": "pca", "components": 8}))["baseline"]
    arm.fit(dataset, tmp_path / "pca", quiet)
    card = json.loads((tmp_path / "pca" / "pca.json").read_text())
    assert card["components"] == 1
    scorer = PCAScorer(torch.tensor([0.5]), torch.zeros(0, 1), 1)
    scores = scores_of(scorer, Inputs(torch.tensor([[[2.5], [0.5], [NAN]]])), [])
    assert scores[0, :2].tolist() == [4.0, 0.0]
    assert scores[0, 2].isnan()


def train_scores(arm, dataset, folder) -> tuple[np.ndarray, np.ndarray]:
    scorer = arm.open(folder)
    train = dataset.split("train")
    scores, targets = [], []
    for _, start, stop in train.sequences:
        rows = train.read(start, stop)
        categorical = None if rows.categorical is None else rows.categorical[None].long()
        inputs = Inputs(rows.numeric[None], categorical)
        scores.append(scores_of(scorer, inputs, [3])[0])
        targets.append(rows.target)
    score, target = torch.cat(scores).numpy(), torch.cat(targets).numpy()
    known = ~np.isnan(score)
    return score[known], target[known]


@pytest.mark.parametrize("rows_per_class", [50_000, 30])
def test_logistic_learns_the_precursor_with_the_log_s_own_odds(
    tmp_path, monkeypatch, rows_per_class
):
    monkeypatch.setattr(logistic, "_ROWS_PER_CLASS", rows_per_class)
    sequences = (("train", 0, 0, 1500), ("train", 1, 0, 1500), ("judged", 0, 1500, 10))
    dataset = make_dataset(tmp_path / "dataset", sequences, categorical=True)
    arm = build_arms(plan_for("alarm"))["baseline"]
    arm.fit(dataset, tmp_path / "fit", quiet)
    score, target = train_scores(arm, dataset, tmp_path / "fit")
    assert score[target == 1].mean() > 3 * score[target == 0].mean()
    # A tenth of the rows are positive, and the sample's half must not show in the probability.
    assert target.mean() == pytest.approx(0.1, abs=0.01)
    assert score.mean() == pytest.approx(target.mean(), abs=0.04)


@pytest.mark.parametrize(("target", "lacking"), [(0, "before an event"), (1, "usual")])
def test_logistic_needs_both_classes(tmp_path, target, lacking):
    minutes = (("train", 0, 5 if target == 0 else 0, 5), ("judged", 0, 60, 5))
    dataset = make_dataset(tmp_path / "dataset", minutes)
    arm = build_arms(plan_for("alarm"))["baseline"]
    with pytest.raises(
        PlanError, match=f"arms.baseline: the train slice has no row of the class '{lacking}'"
    ):
        arm.fit(dataset, tmp_path / "fit", quiet)


@pytest.mark.parametrize(("kind", "task"), [("pca", "forecast_anomaly"), ("logistic", "alarm")])
def test_a_finished_fit_is_kept_and_a_damaged_one_made_again(tmp_path, kind, task):
    dataset = make_dataset(tmp_path / "dataset")
    arm = build_arms(plan_for(task))["baseline"]
    folder = tmp_path / "fit"
    arm.fit(dataset, folder, quiet)
    weights = folder / "weights.safetensors"
    written = weights.stat().st_mtime_ns
    arm.fit(dataset, folder, quiet)
    assert weights.stat().st_mtime_ns == written
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(RunError, match="the weights are not those of the card"):
        arm.open(folder)
    arm.fit(dataset, folder, quiet)
    arm.open(folder)
    (folder / f"{kind}.json").unlink()
    with pytest.raises(RunError, match="no finished fit"):
        arm.open(folder)


# The plan's tables.


def test_a_fit_takes_the_threads_of_the_plan_and_gives_them_back(tmp_path):
    dataset = make_dataset(tmp_path / "data")
    seen = []

    def look(stage: str, done: int, total: int | None) -> None:
        seen.append(torch.get_num_threads())

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        build_arms(make_plan(threads=2))["candidate"].fit(dataset, tmp_path / "model", look)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert 2 in seen


def test_a_fit_tells_its_beginning_and_its_end_also_when_there_was_nothing_to_do(tmp_path):
    dataset, arm = make_dataset(tmp_path / "data"), build_arms(make_plan())["candidate"]
    told: list[tuple[str, int, int | None]] = []

    def tell(stage: str, done: int, total: int | None) -> None:
        told.append((stage, done, total))

    arm.fit(dataset, tmp_path / "model", tell)
    first = told.copy()
    told.clear()
    arm.fit(dataset, tmp_path / "model", tell)
    steps = first[-1][2]
    assert first[0] == ("fit candidate", 0, steps)
    assert first[-1] == ("fit candidate", steps, steps)
    assert told == [first[0], first[-1]]


def test_every_kind_of_the_plan_has_a_class():
    classes = get_args(get_args(ArmPlan)[0])
    kinds = {get_args(own.model_fields["kind"].annotation)[0] for own in classes}
    assert kinds == set(ARMS)


@pytest.mark.parametrize(
    ("table", "entry", "message"),
    [
        ("model", {"widht": 8}, r"arms\.candidate\.model\.widht: unknown field"),
        ("model", {"width": 0}, r"arms\.candidate\.model\.width: must be"),
        ("model", {"inputs": {}}, r"arms\.candidate\.model\.inputs: cannot be chosen"),
        ("model", {"head": {}}, r"arms\.candidate\.model\.head: cannot be chosen"),
        ("model", {"architecture": "gru"}, r"arms\.candidate\.model\.architecture: cannot"),
        ("model", {"policy": {"kind": "oracle"}}, r"arms\.candidate\.model\.policy\.kind: "),
        ("model", {"pool": [{"kind": "swiglu", "x": 1}]}, r"arms\.candidate\.model\.pool\[0\]\.x"),
        ("model", {"bidirectional": True}, r"arms\.candidate\.model\.bidirectional: "),
        ("training", {"max_step": 1}, r"arms\.candidate\.training\.max_step: unknown field"),
        ("training", {"compile": "model"}, r"arms\.candidate\.training\.compile: rows of"),
        ("training", {"window": "long"}, r"arms\.candidate\.training\.window: must be"),
    ],
)
def test_a_wrong_field_is_named_before_anything_is_fitted(tmp_path, table, entry, message):
    dataset = make_dataset(tmp_path / "dataset")
    candidate = {"kind": "sma", table: entry}
    plan = make_plan(candidate, incumbent=TRANSFORMER)
    with pytest.raises(PlanError, match=message):
        fit_arms(plan, dataset, tmp_path, tmp_path / "models", quiet)
    assert not (tmp_path / "models").exists()


def test_a_target_rate_needs_a_policy_that_learns(tmp_path):
    dataset = make_dataset(tmp_path / "dataset")
    candidate = {
        "kind": "sma",
        "model": {**SMALL_MODEL, "policy": {"kind": "periodic", "stride": 2}},
        "training": {"target_rate": 0.5},
    }
    with pytest.raises(PlanError, match=r"arms\.candidate\.training\.target_rate: "):
        fit_arms(make_plan(candidate), dataset, tmp_path, tmp_path / "models", quiet)


def test_the_twin_is_the_candidate_always_on_trained_alike(tmp_path):
    dataset = make_dataset(tmp_path / "dataset")
    training = {**SMALL_TRAINING, "target_rate": 0.3, "learning_rate": 1e-3}
    plan = make_plan({"kind": "sma", "model": SMALL_MODEL, "training": training}, seed=2**32 + 5)
    fit_arms(plan, dataset, tmp_path, tmp_path / "models", quiet)
    cards = {
        role: json.loads((tmp_path / "models" / role / "model.json").read_text())
        for role in ("candidate", "incumbent")
    }
    configs = {role: card["config"] for role, card in cards.items()}
    assert configs["incumbent"].pop("policy") == {"kind": "always"}
    assert configs["candidate"].pop("policy")["kind"] == "tempered_softmax"
    assert configs["incumbent"] == configs["candidate"]
    fits = {role: card["provenance"]["fit"]["training"] for role, card in cards.items()}
    assert fits["candidate"].pop("target_rate") == 0.3
    assert fits["incumbent"].pop("target_rate") is None
    assert fits["incumbent"] == fits["candidate"]
    assert fits["incumbent"]["seed"] == 5  # training takes 32 bits, a plan any number


def test_a_twin_may_have_a_training_table_of_its_own(tmp_path):
    dataset = make_dataset(tmp_path / "dataset")
    twin = {"kind": "dense_twin", "training": {"max_steps": 2, "window": 16}}
    fit_arms(make_plan(incumbent=twin), dataset, tmp_path, tmp_path / "models", quiet)
    card = json.loads((tmp_path / "models" / "incumbent" / "model.json").read_text())
    assert card["provenance"]["fit"]["training"]["window"] == 16
    assert card["provenance"]["fit"]["training"]["batch_size"] == 16


def test_a_model_that_diverged_is_refused_and_not_silently_unscored(fitted, tmp_path):
    scorer = fitted["forecast_anomaly/transformer"]
    weight = scorer._model.head.weight
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.fill_(float("inf"))
        with torch.inference_mode(), pytest.raises(RunError, match="no numbers"):
            scorer.score(some_rows(1, 5), scorer.start(1))
    finally:
        with torch.no_grad():
            weight.copy_(before)
