"""The simple arms of lives and of sessions: what they fit, what they score, that they stream."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from tests.pilot import test_task_sessions as sessions
from tests.pilot.replay_cases import START, make_dataset, quiet
from tests.pilot.replay_cases import make_plan as make_replay_plan
from tests.pilot.test_arms import same, scores_of, some_rows
from tests.tolerances import assert_close

from sma_core.dataset import CategoricalChannel, DatasetWriter, PreparedDataset
from sma_core.model import Inputs
from sma_pilot.arms import Arm, build_arms
from sma_pilot.arms.count_pca import CountPCAScorer
from sma_pilot.arms.linear import features, no_rows
from sma_pilot.arms.ridge import RidgeScorer
from sma_pilot.errors import PlanError
from sma_pilot.plan import Plan
from sma_pilot.replay.timeline import stack
from sma_pilot.targets import class_scores


def life_plan() -> Plan:
    document = make_replay_plan(task="alarm").model_dump(mode="json")
    document["task"]["kind"] = "remaining_life"
    document["arms"]["baseline"] = {"kind": "ridge"}
    return Plan.model_validate(document)


def session_plan(**baseline: Any) -> Plan:
    return sessions.make_plan(arms={"baseline": {"kind": "count_pca", **baseline}})


def session_dataset(
    folder: Path, train: list[list[int]], labels: list[int] | None = None, events: int = 5
) -> PreparedDataset:
    """Training sessions of event numbers, the first one the unknown event."""
    vocabulary = ("<unknown>", *(f"event {number}" for number in range(1, events)))
    with DatasetWriter(
        folder,
        name="case",
        categorical=[CategoricalChannel(name="event", vocabulary=vocabulary)],
        classes=vocabulary,
        entities=[f"session {number}" for number in range(len(train))],
        splits=("train", "validation", "judged"),
    ) as writer:
        for number, codes in enumerate(train):
            label = np.zeros(len(codes), np.int32)
            label[-1] = 0 if labels is None else labels[number]
            writer.append(
                "train",
                entity=number,
                time=START + np.arange(len(codes)),
                categorical=np.array(codes, np.int32)[:, None],
                label=label,
                target=np.array([*codes[1:], -1], np.int32),
            )
    return PreparedDataset.open(folder)


def baseline(plan: Plan) -> Arm:
    return build_arms(plan)["baseline"]


def events(*codes: int) -> Inputs:
    return Inputs(categorical=torch.tensor(codes)[None, :, None])


@pytest.mark.parametrize("categorical", [True, False])
def test_ridge_is_least_squares_with_a_penalty(tmp_path, categorical):
    dataset = make_dataset(tmp_path / "dataset", categorical=categorical)
    plan = life_plan()
    arm = baseline(plan)
    arm.fit(dataset, tmp_path / "fit", quiet)
    train = dataset.split("train")
    columns, taught = [], []
    for _, start, stop in train.sequences:
        rows = train.read(start, stop)
        assert rows.numeric is not None
        assert rows.target is not None
        window = torch.cat([no_rows(1, 3), rows.numeric[None]], 1)
        parts = [features(window)[0].numpy()]
        if rows.categorical is not None:
            parts.append(np.eye(3)[rows.categorical[:, 0].numpy()])
        columns.append(np.concatenate(parts, 1).astype(np.float64))
        taught.append(np.array(class_scores(plan.task))[rows.target.numpy()])
    design, target = np.concatenate(columns), np.concatenate(taught)
    scale = np.ones(design.shape[1])
    scale[:9] = design[:, :9].std(0)
    # scikit-learn's penalty is on the sum over rows.
    model = Ridge(alpha=1e-3 * len(design)).fit(design / scale, target)
    expected = model.predict(design / scale).clip(0, 1)
    scorer = arm.open(tmp_path / "fit")
    found = []
    for _, start, stop in train.sequences:
        inputs = stack([train.read(start, stop)])
        found.append(scores_of(scorer, inputs, [7])[0])
    score = torch.cat(found)
    known = ~score.isnan()
    assert known.all() == categorical
    assert_close(score[known], torch.from_numpy(expected)[known].float(), "float32")


@torch.inference_mode()
def test_ridge_streams_as_it_scores_and_keeps_to_its_range():
    generator = torch.Generator().manual_seed(0)
    scorer = RidgeScorer(
        numeric=torch.randn(9, 1, generator=generator),
        categorical=torch.randn(3, 1, generator=generator),
        vocabularies=torch.tensor([3]),
        bias=torch.tensor([0.5]),
    )
    inputs = some_rows(2, 40)
    whole = scores_of(scorer, inputs, [])
    assert (whole.min().item(), whole.max().item()) == (0.0, 1.0)
    same(scores_of(scorer, inputs, [1, 2, 19]), whole)
    state = scorer.start(1)
    alone = inputs.map(lambda rows: rows[1:])
    steps = [scorer.step(alone.map(lambda rows, t=t: rows[:, t : t + 1]), state)[0] for t in (0, 1)]
    same(torch.tensor(steps), whole[1, :2])


@torch.inference_mode()
def test_counts_beside_the_plane_by_hand():
    # The plane is the axis of event 1: what event 2 adds is all that counts.
    scorer = CountPCAScorer(torch.tensor([0.0, 0.5, 0.0]), torch.tensor([[0.0, 1.0, 0.0]]))
    expected = [0.0, 0.0, 0.0, np.log(2) ** 2, np.log(2) ** 2]
    score = scores_of(scorer, events(1, 1, 1, 2, 1), [])[0]
    assert score.tolist() == pytest.approx(expected, abs=1e-6)
    same(scores_of(scorer, events(1, 1, 1, 2, 1), [2, 4])[0], score)
    state = scorer.start(1)
    steps = [scorer.step(events(code), state)[0] for code in (1, 1, 1, 2, 1)]
    same(torch.tensor(steps), score)


@torch.inference_mode()
def test_an_event_that_training_has_not_is_far_from_usual_however_many_components(tmp_path):
    rng = np.random.default_rng(0)
    train = [[1] * rng.integers(1, 4) + [2] * rng.integers(1, 4) + [3] for _ in range(60)]
    dataset = session_dataset(tmp_path / "dataset", train)
    arm = baseline(session_plan(components=100))
    arm.fit(dataset, tmp_path / "fit", quiet)
    card = json.loads((tmp_path / "fit" / "count_pca.json").read_text())
    assert (card["components"], card["sessions"]) == (2, 60)
    scorer = arm.open(tmp_path / "fit")
    usual = scores_of(scorer, events(1, 1, 2, 3), [])[0, -1].item()
    unknown = scores_of(scorer, events(1, 1, 2, 0, 3), [])[0, -1].item()
    assert usual < 1e-3
    assert unknown == pytest.approx(np.log(2) ** 2, abs=1e-3)


@torch.inference_mode()
def test_sessions_all_alike_have_no_plane_and_score_by_distance(tmp_path):
    dataset = session_dataset(tmp_path / "dataset", [[1, 2]] * 20)
    arm = baseline(session_plan())
    arm.fit(dataset, tmp_path / "fit", quiet)
    scorer = arm.open(tmp_path / "fit")
    assert scores_of(scorer, events(1, 2), [])[0, -1].item() == pytest.approx(0, abs=1e-9)
    assert scores_of(scorer, events(1, 2, 4), [])[0, -1].item() == pytest.approx(np.log(2) ** 2)


def test_anomalous_sessions_teach_nothing_and_without_others_there_is_no_fit(tmp_path):
    dataset = session_dataset(tmp_path / "dataset", [[1, 2], [3, 3, 3]], [0, 1])
    arm = baseline(session_plan())
    arm.fit(dataset, tmp_path / "fit", quiet)
    assert json.loads((tmp_path / "fit" / "count_pca.json").read_text())["sessions"] == 1
    anomalous = session_dataset(tmp_path / "other", [[1, 2], [3, 3, 3]], [1, 1])
    with pytest.raises(PlanError, match=r"arms\.baseline: every training session is labelled"):
        arm.fit(anomalous, tmp_path / "none", quiet)


def test_simple_arms_have_words_and_others_their_kind():
    words = {role: arm.words for role, arm in session_plan().named_arms().items()}
    assert words["baseline"] == "PCA of event counts"
    assert words["incumbent"] == "dense twin"
