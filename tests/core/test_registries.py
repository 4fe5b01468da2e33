"""A user's own policy and sub-module: registered in one line each, then like any other."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tests.core.models import piece, random_inputs, small_config, small_model
from tests.core.parity import run_chunks, run_fast, run_steps
from tests.tolerances import assert_close
from torch import Tensor, nn

from sma_core import (
    ConfigError,
    ModelConfig,
    Policy,
    PolicyConfig,
    RoutingDecision,
    RowwiseSubModule,
    SubModule,
    SubModuleConfig,
    build_model,
    config_from_dict,
    config_to_dict,
    load_checkpoint,
    register_policy,
    register_submodule,
    routing_trace,
    save_checkpoint,
)
from sma_core.costs import step_flops, submodule_flops
from sma_core.dispatch import Rows
from sma_core.state import TensorState


@dataclass(frozen=True, kw_only=True)
class ThresholdConfig(PolicyConfig):
    """Run where the margin is over a threshold."""

    kind: ClassVar[str] = "test_threshold"
    threshold: float = 0.0

    def __post_init__(self) -> None:
        if self.threshold < 0:
            raise ConfigError(f"threshold: must be at least 0, not {self.threshold!r}")


class Threshold(Policy):
    config: ThresholdConfig

    def forward(self, logits: Tensor, position: Tensor) -> RoutingDecision:
        margin = logits[..., 1] - logits[..., 0]
        return RoutingDecision(
            active=margin > self.config.threshold,
            confidence=margin.sigmoid(),
            logits=logits,
            probability=margin.sigmoid(),
        )


@dataclass(frozen=True, kw_only=True)
class ScaleConfig(SubModuleConfig):
    """Row by row."""

    kind: ClassVar[str] = "test_scale"


class Scale(RowwiseSubModule):
    def __init__(self, config: ScaleConfig, *, width: int, causal: bool) -> None:
        super().__init__(config, width=width, causal=causal)
        self.weight = nn.Parameter(torch.ones(width))

    def transform(self, x: Tensor) -> Tensor:
        return x * self.weight


@dataclass(frozen=True, kw_only=True)
class RunningMeanConfig(SubModuleConfig):
    """Mean of all active rows so far: with a history, so with a state and a step."""

    kind: ClassVar[str] = "test_running_mean"


@dataclass
class MeanState(TensorState):
    total: Tensor
    count: Tensor


class RunningMean(SubModule):
    def __init__(self, config: RunningMeanConfig, *, width: int, causal: bool) -> None:
        super().__init__(config, width=width, causal=causal)
        self.map = nn.Linear(width, width)

    def forward(self, x: Tensor, rows: Rows, state: Any | None = None) -> Tensor:
        y, out = self.map(x), []
        for b in range(len(rows.start)):
            at = slice(int(rows.start[b]), int(rows.start[b] + rows.count[b]))
            total, count = y[at].cumsum(0), torch.arange(1, int(rows.count[b]) + 1)
            if state is not None:
                total, count = total + state.total[b], count + state.count[b]
                if len(total):
                    state.total[b], state.count[b] = total[-1].detach(), count[-1]
            out.append(total / count[:, None])
        return torch.cat(out)

    def init_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> MeanState:
        return MeanState(
            total=torch.zeros(batch, self.width, device=device, dtype=dtype),
            count=torch.zeros(batch, device=device, dtype=torch.int64),
        )

    def step(self, x: Tensor, position: Tensor, state: Any, index: Tensor | None) -> Tensor:
        at = torch.arange(len(state.count)) if index is None else index
        state.total[at] += self.map(x)
        state.count[at] += 1
        return state.total[at] / state.count[at, None]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    from sma_core import routing, submodules

    monkeypatch.setattr(routing, "POLICIES", dict(routing.POLICIES))
    monkeypatch.setattr(submodules, "SUBMODULES", dict(submodules.SUBMODULES))
    register_policy(ThresholdConfig, Threshold)
    register_submodule(ScaleConfig, Scale)
    register_submodule(RunningMeanConfig, RunningMean)


@pytest.fixture
def config() -> ModelConfig:
    """Both own sub-modules between two of the package's."""
    base = small_config(pool=2)
    pool = (base.pool[0], RunningMeanConfig(), base.pool[1], ScaleConfig())
    return replace(base, pool=pool, policy=ThresholdConfig())


@pytest.mark.parametrize("way", [run_chunks, run_steps])
def test_one_pass_chunks_and_steps_agree(config: ModelConfig, way) -> None:
    model, inputs = small_model(config), random_inputs(config, [14, 9, 1])
    with torch.no_grad():
        expected = torch.cat(run_fast(model, inputs))
        assert_close(torch.cat(way(model, inputs)), expected, "float64")
    rates = torch.tensor(routing_trace(model, inputs).rates())
    assert ((rates > 0) & (rates < 1)).all(), "each must run at some steps and not at others"


def test_their_weights_learn(config: ModelConfig) -> None:
    model = small_model(config)
    model(random_inputs(config, [14, 9, 1])).prediction.sum().backward()
    own = {
        name: p for name, p in model.named_parameters() if ".pool.1." in name or ".pool.3." in name
    }
    assert len(own) == 2 * 3
    assert all(weight.grad is not None and weight.grad.any() for weight in own.values())


def test_a_checkpoint_brings_them_back(config: ModelConfig, tmp_path: Path) -> None:
    model, inputs = small_model(config, dtype=torch.float32), random_inputs(config, [14, 9, 1])
    save_checkpoint(tmp_path / "model", model, provenance={})
    loaded = load_checkpoint(tmp_path / "model")
    assert loaded.config == config
    assert loaded.model(inputs).prediction.equal(model(inputs).prediction)
    inputs = replace(piece(inputs, 0, 1), lengths=None)
    states = [m.init_state(3) for m in (model, loaded.model)]
    ours, theirs = (
        m.step(inputs, state).prediction
        for m, state in zip((model, loaded.model), states, strict=True)
    )
    assert theirs.equal(ours)


def test_their_plain_form(config: ModelConfig) -> None:
    config = replace(config, policy=ThresholdConfig(threshold=0.1))
    plain = json.loads(json.dumps(config_to_dict(config)))
    assert plain["policy"] == {"kind": "test_threshold", "threshold": 0.1}
    assert config_from_dict(plain) == config
    plain["policy"]["threshold"] = -1
    with pytest.raises(ConfigError, match=r"^policy\.threshold: must be at least 0, not -1$"):
        config_from_dict(plain)


def test_states_of_their_own_travel_with_the_rest(config: ModelConfig) -> None:
    model, inputs = small_model(config), random_inputs(config, [14, 14])
    inputs = replace(inputs, lengths=None)
    state = model.init_state(2)
    model(piece(inputs, 0, 8), state)
    swapped = state.select(torch.tensor([1, 0]))
    late = piece(inputs.map(lambda tensor: tensor.flip(0)), 8, 14)
    got = model(late, swapped).prediction
    assert_close(got.flip(0), model(inputs).prediction[:, 8:], "float64")
    assert model.init_state(3).nbytes == 3 * model.init_state(1).nbytes


def test_a_count_of_operations_is_asked_for_and_can_be_given(config: ModelConfig) -> None:
    rates = [[0.5] * 4] * 2
    with pytest.raises(ConfigError, match="no count of FLOPs for sub-module 'test_running_mean'"):
        step_flops(config, rates)
    plain = replace(config, pool=config.pool[::2])
    submodule_flops.register(RunningMeanConfig, lambda config, width, causal: 100)
    submodule_flops.register(ScaleConfig, lambda config, width, causal: 10)
    extra = step_flops(config, rates) - step_flops(plain, [[0.5, 0.5]] * 2)
    # Half of 110, and two more pairs of router logits, in each of two layers.
    assert extra == 2 * (0.5 * 110 + 2 * config.width * 4)


def test_what_is_not_registered_is_refused(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sma_core import routing, submodules

    monkeypatch.delitem(submodules.SUBMODULES, ScaleConfig)
    with pytest.raises(ConfigError, match="pool: nothing is registered for ScaleConfig; known"):
        build_model(config)
    monkeypatch.delitem(routing.POLICIES, ThresholdConfig)
    with pytest.raises(ConfigError, match="policy: nothing is registered for ThresholdConfig"):
        build_model(config)
