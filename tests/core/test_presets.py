"""The published sizes: as large as the published layers, and able to learn and to run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.core.models import random_inputs
from tests.tolerances import assert_close

from sma_core import (
    GatedAttentionConfig,
    Inputs,
    ModelConfig,
    SMAModel,
    build_model,
    config_from_dict,
    config_to_dict,
)
from sma_core.costs import parameter_count
from sma_core.presets import PRESETS

# Parameters of one layer of the public code at these sizes, counted by running it (version of
# 2023-11-26, layer or batch norm), and the number of layers in its training scripts.
PUBLISHED = {
    "listops": (65_366, 6),
    "text": (141_762, 4),
    "retrieval": (148_998, 6),
    "image": (219_330, 8),
    "pathfinder": (143_042, 6),
    "path_x": (173_762, 4),
    "speech": (36_260, 8),
    "enwik8": (2_781_883, 14),
}
CAUSAL = [name for name, config in PRESETS.items() if config.causal]
# Layers are alike: two show what all of them would, in a fraction of the time.
SHORT = {name: replace(config, layers=2) for name, config in PRESETS.items()}


def unused(config: ModelConfig) -> int:
    """Published numbers that ours does without.

    A local table of theirs reaches 3 W - 1 to either side, ours the window; and layer norm, with
    which they were counted, has 2 D numbers where scale norm has one.
    """
    attention = config.pool[0]
    assert isinstance(attention, GatedAttentionConfig)
    table = 4 * attention.window - 2 if attention.position == "local" else 0
    return table + (2 * config.width - 1 if config.norm == "scale" else 0)


def test_every_published_task_has_one() -> None:
    assert PRESETS.keys() == PUBLISHED.keys()


@pytest.mark.parametrize("name", PRESETS)
def test_size_of_the_published_layer(name: str) -> None:
    config = PRESETS[name]
    with torch.device("meta"):
        model = build_model(config)
    assert isinstance(model, SMAModel)
    parameters, layers = PUBLISHED[name]
    counts = [parameter_count(layer) for layer in model.layers]
    assert counts == [parameters - unused(config)] * layers


def test_the_document_gives_these_sizes() -> None:
    """The table of docs/seqboat.md, field by field."""
    text = (Path(__file__).parents[2] / "docs/seqboat.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    told = {row[0].strip("`"): row[1:] for row in rows if row[0].strip("`") in PRESETS}
    expected = {}
    for name, config in PRESETS.items():
        attention = config.pool[0]
        assert isinstance(attention, GatedAttentionConfig)
        assert (attention.value_width, config.states) == (2 * config.width, 16)
        with torch.device("meta"):
            parameters = parameter_count(build_model(config))
        expected[name] = [
            str(config.layers),
            str(config.width),
            str(attention.query_width),
            str(attention.window),
            attention.score,
            f"{config.norm}, {'pre' if config.prenorm else 'post'}",
            attention.position,
            f"{parameters:,}",
        ]
    assert told == expected


@pytest.mark.parametrize("name", PRESETS)
def test_travels_as_json(name: str) -> None:
    assert config_from_dict(config_to_dict(PRESETS[name])) == PRESETS[name]


@pytest.mark.parametrize("name", PRESETS)
def test_learns(name: str) -> None:
    """A step against the gradient lowers the loss on its own batch; every weight has a gradient."""
    torch.manual_seed(0)
    model = build_model(replace(SHORT[name], dropout=0.0)).train()
    batch = random_inputs(SHORT[name], [40, 23], dtype=torch.float32)
    target = torch.zeros(2, dtype=torch.long)

    def loss() -> torch.Tensor:
        prediction = model(batch).prediction
        last = prediction if prediction.dim() == 2 else prediction[:, 20]
        return torch.nn.functional.cross_entropy(last, target)

    before = loss()
    before.backward()
    gradients = [weight.grad for weight in model.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    norm = torch.stack([g.norm() for g in gradients if g is not None]).norm()
    with torch.no_grad():
        for weight, gradient in zip(model.parameters(), gradients, strict=True):
            assert gradient is not None
            weight -= 1e-3 * gradient / norm
    assert loss() < before


@pytest.mark.parametrize("name", CAUSAL)
def test_streams(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(SHORT[name]).eval()
    batch = random_inputs(SHORT[name], [6])
    state = model.init_state(1)
    assert batch.categorical is not None
    with torch.no_grad():
        expected = model(batch).prediction
    for t in range(6):
        found = model.step(Inputs(categorical=batch.categorical[:, t : t + 1]), state).prediction
        assert_close(found[:, 0], expected[:, t], "float32")
