"""A checkpoint from elsewhere is taken over as it is, and refused for data that it does not fit."""

import json
from pathlib import Path

import pytest
from tests.pilot.arm_cases import same, scores_of, some_rows
from tests.pilot.replay_cases import (
    make_dataset,
    make_plan,
    quiet,
)

from sma_core.checkpoint import load_checkpoint, save_checkpoint
from sma_core.errors import CheckpointError
from sma_pilot.arms import build_arms, fit_arms
from sma_pilot.errors import PlanError


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> Path:
    """A data folder with a fitted candidate under ``given``."""
    root = tmp_path_factory.mktemp("elsewhere")
    dataset = make_dataset(root / "dataset", categorical=True)
    fit_arms(make_plan(), dataset, root, root / "models", quiet)
    (root / "models" / "candidate").rename(root / "given")
    return root


CHECKPOINT = {"kind": "checkpoint", "checkpoint": "given"}


def test_a_checkpoint_is_taken_over_as_it_is(elsewhere, tmp_path):
    dataset = make_dataset(tmp_path / "dataset", categorical=True)
    plan = make_plan(incumbent=CHECKPOINT)
    fit_arms(plan, dataset, elsewhere, tmp_path / "models", quiet)
    copied = tmp_path / "models" / "incumbent"
    for name in ("model.json", "weights.safetensors"):
        assert (copied / name).read_bytes() == (elsewhere / "given" / name).read_bytes()
    inputs = some_rows(1, 20)
    arm = build_arms(plan, elsewhere)["incumbent"]
    scores = scores_of(arm.open(copied), inputs, [])
    same(scores, scores_of(arm.open(elsewhere / "given"), inputs, []))


@pytest.mark.parametrize(
    ("data", "task", "message"),
    [
        ({"names": ("y", "x", "z")}, "forecast_anomaly", r"numeric channels \['x', 'y', 'z'\]"),
        ({"categorical": False}, "forecast_anomaly", "categorical channels"),
        ({"center": 0.5}, "forecast_anomaly", "channel 'x' was scaled with center 0"),
        ({}, "alarm", "its head is forecast with 3 outputs"),
        ({"names": ("x", "y")}, "forecast_anomaly", "its head is forecast with 3 outputs"),
    ],
)
def test_a_checkpoint_for_other_data_is_refused(elsewhere, tmp_path, data, task, message):
    dataset = make_dataset(tmp_path / "dataset", **{"categorical": True, **data})
    plan = make_plan(incumbent=CHECKPOINT, task=task)
    with pytest.raises(PlanError, match=f"arms.incumbent.checkpoint: given: .*{message}"):
        fit_arms(plan, dataset, elsewhere, tmp_path / "models", quiet)


def test_a_checkpoint_scaled_otherwise_for_one_machine_is_refused(elsewhere, tmp_path):
    dataset = make_dataset(tmp_path / "dataset", categorical=True)
    ours = dataset.card.to_dict()
    scales = {"center": [0.0, 0.0, 0.0], "scale": [1.0, 2.0, 1.0]}
    ours["provenance"] = {"scaling": {"entities": {"machine 1": scales}}}
    theirs = json.loads(json.dumps(ours))
    model = load_checkpoint(elsewhere / "given").model
    save_checkpoint(tmp_path / "given", model, provenance={}, dataset_card=theirs)
    scales["scale"][1] = 4.0
    card = type(dataset.card).from_dict(ours)
    dataset.card = card
    with pytest.raises(PlanError, match="channel 'y' of 'machine 1' was scaled"):
        build_arms(make_plan(incumbent=CHECKPOINT), tmp_path)["incumbent"].check(dataset)


def test_a_checkpoint_that_does_not_say_what_it_saw_is_refused(elsewhere, tmp_path):
    dataset = make_dataset(tmp_path / "dataset", categorical=True)
    model = load_checkpoint(elsewhere / "given").model
    save_checkpoint(tmp_path / "given", model, provenance={})
    with pytest.raises(PlanError, match="no data set card"):
        build_arms(make_plan(incumbent=CHECKPOINT), tmp_path)["incumbent"].check(dataset)


def test_an_absent_or_damaged_checkpoint_is_refused(elsewhere, tmp_path):
    dataset = make_dataset(tmp_path / "dataset", categorical=True)
    arm = build_arms(make_plan(incumbent=CHECKPOINT), tmp_path)["incumbent"]
    with pytest.raises(CheckpointError):
        arm.check(dataset)
    (tmp_path / "given").mkdir()
    for name in ("model.json", "weights.safetensors"):
        (tmp_path / "given" / name).write_bytes((elsewhere / "given" / name).read_bytes())
    weights = bytearray((tmp_path / "given" / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "given" / "weights.safetensors").write_bytes(weights)
    with pytest.raises(CheckpointError):
        arm.check(dataset)
