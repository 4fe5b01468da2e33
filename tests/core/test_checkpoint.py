"""Checkpoints: what is saved is loaded, what is damaged is refused."""

import json
from pathlib import Path

import pytest
import torch

from sma_core.checkpoint import load_checkpoint, save_checkpoint
from sma_core.config import (
    ArchitectureConfig,
    GRUConfig,
    HeadConfig,
    InputConfig,
    ModelConfig,
    SwiGLUConfig,
    TransformerConfig,
)
from sma_core.errors import CheckpointError
from sma_core.inputs import Inputs
from sma_core.model import build_model

INPUTS = InputConfig(numeric=2)
HEAD = HeadConfig(kind="forecast", outputs=2)
CONFIGS = [
    ModelConfig(inputs=INPUTS, head=HEAD, width=8, pool=(SwiGLUConfig(hidden_width=4),)),
    TransformerConfig(inputs=INPUTS, head=HEAD, width=8, heads=2, hidden_width=8, window=3),
    GRUConfig(inputs=INPUTS, head=HEAD, width=8),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = build_model(CONFIGS[0])
    save_checkpoint(tmp_path / "model", model, provenance={"by": "test"})
    return tmp_path / "model"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.architecture)
def test_round_trip(tmp_path: Path, config: ArchitectureConfig) -> None:
    model = build_model(config).eval()
    save_checkpoint(
        tmp_path / "model", model, provenance={"by": "test"}, dataset_card={"name": "presses"}
    )
    before = torch.get_rng_state()
    loaded = load_checkpoint(tmp_path / "model")
    assert torch.get_rng_state().equal(before)
    assert loaded.config == config
    assert loaded.card["provenance"] == {"by": "test"}
    assert loaded.card["dataset"] == {"name": "presses"}
    assert not loaded.model.training
    inputs = Inputs(torch.randn(1, 6, 2))
    with torch.no_grad():
        assert loaded.model(inputs).prediction.equal(model(inputs).prediction)
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "model.json",
        "weights.safetensors",
    }


def test_saving_again_replaces(folder: Path) -> None:
    model = build_model(CONFIGS[1])
    save_checkpoint(folder, model, provenance={"by": "second"})
    loaded = load_checkpoint(folder)
    assert loaded.config == CONFIGS[1]
    assert loaded.card["provenance"] == {"by": "second"}


@pytest.mark.parametrize("position", [8, 200, -1])
def test_a_flipped_byte_is_found(folder: Path, position: int) -> None:
    path = folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is not what the hash"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "is version 2 and this library reads version 1"),
        ({"format": "x"}, "its format is not 'sma.checkpoint'"),
        ({"config": {"architecture": "rnn"}}, "config: architecture: 'rnn' is not one of"),
        ({"config": None}, "config: architecture: None is not one of"),
        ({"config": 3}, "config: architecture: None is not one of"),
    ],
)
def test_a_wrong_card_is_refused(folder: Path, change: dict, message: str) -> None:
    card = json.loads((folder / "model.json").read_text()) | change
    (folder / "model.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    assert message in str(caught.value)


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    card = json.loads((folder / "model.json").read_text())
    card["config"]["width"] = 10
    (folder / "model.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match="does not fit its configuration"):
        load_checkpoint(folder)


def test_missing_and_unreadable_files_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no model\.json"):
        load_checkpoint(tmp_path / "nowhere")
    (folder / "weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is missing: copy the checkpoint again"):
        load_checkpoint(folder)
    (folder / "model.json").write_bytes(b"\xff\x00")
    with pytest.raises(CheckpointError, match="is no JSON"):
        load_checkpoint(folder)


def test_a_stop_between_weights_and_card_leaves_no_half_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sma_core.checkpoint.write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(folder, build_model(CONFIGS[1]), provenance={})
    with pytest.raises(CheckpointError, match=r"has no model\.json"):
        load_checkpoint(folder)


def test_provenance_must_be_json(tmp_path: Path) -> None:
    for value in (torch.zeros(1), float("nan")):
        with pytest.raises(CheckpointError, match="is not JSON"):
            save_checkpoint(tmp_path, build_model(CONFIGS[0]), provenance={"x": value})
