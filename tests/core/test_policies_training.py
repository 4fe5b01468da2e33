"""Training with every policy: it learns, resumes bit for bit, and holds its rate elsewhere."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tests.core.tasks import SHORT, noisy_sines, small_sma
from tests.slow import slow
from torch import Tensor

from sma_core import (
    BudgetConfig,
    ConfigError,
    GumbelConfig,
    Inputs,
    NeverConfig,
    PeriodicConfig,
    Policy,
    PolicyConfig,
    PreparedDataset,
    RoutingDecision,
    SigmoidConfig,
    TemperatureConfig,
    TopKConfig,
    TrainingConfig,
    fit,
    load_checkpoint,
    register_policy,
)
from sma_core.objectives import activation_rates
from sma_core.routing.straight_through import StraightThrough
from sma_core.training import Progress, check_fit

pytestmark = pytest.mark.usefixtures("unchecked_signatures")

LEARNING = replace(
    SHORT,
    window=64,
    batch_size=8,
    max_steps=100,
    learning_rate=1e-2,
    warmup_steps=10,
    evaluate_every=50,
    evaluate_batches=8,
    patience=20,
    checkpoint_every=1000,
)
ANNEALED = TemperatureConfig(start=2.0, end=0.5, schedule="exponential", share=0.8)
POLICIES = {
    "gumbel": GumbelConfig(temperature=ANNEALED),
    "sigmoid": SigmoidConfig(temperature=ANNEALED),
    "top-k": TopKConfig(rate=0.4),
    "budget": BudgetConfig(rate=0.4),
}
EVERY = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
# Learning takes a while: the policy whose rate is hardest to hold learns in every run.
LEARNED = pytest.mark.parametrize(
    "policy",
    [
        pytest.param(policy, id=name, marks=[] if name == "budget" else [slow])
        for name, policy in POLICIES.items()
    ],
)


def small(policy: PolicyConfig):
    return replace(small_sma(), policy=policy)


@LEARNED
def test_a_forecast_beats_persistence(
    sines: PreparedDataset, tmp_path: Path, policy: PolicyConfig
) -> None:
    result = fit(small(policy), sines, LEARNING, tmp_path / "model")
    rows = sines.split("validation")
    persistence = []
    for ref in rows.sequences:
        numeric = rows.read(ref.start, ref.stop).numeric
        assert numeric is not None
        persistence.append(F.smooth_l1_loss(numeric[:-1], numeric[1:]))
    assert result.best_validation_loss < 0.5 * torch.stack(persistence).mean()
    rate = result.validation_metrics["activation_rate"]
    if isinstance(policy, TopKConfig):
        assert rate == pytest.approx(0.4, abs=0.15), "the predictor decides in evaluation"
    if isinstance(policy, BudgetConfig):
        # Windows of 64 steps: the first quarter of each is the router's own choice.
        assert rate == pytest.approx(0.4, abs=0.1)
        assert_rate_held_elsewhere(result.checkpoint)


def assert_rate_held_elsewhere(checkpoint: Path) -> None:
    """On data of another level, scale and pace, in every layer and sub-module."""
    model = load_checkpoint(checkpoint).model
    numeric = torch.stack(
        [noisy_sines(2000, torch.Generator().manual_seed(seed)) for seed in (5, 6)]
    )
    for shifted in (numeric, numeric * 4, numeric + 3, numeric[:, ::3].repeat(1, 3, 1)):
        with torch.no_grad():
            rates = activation_rates(model(Inputs(shifted)).decisions, None)
        assert rates.flatten().tolist() == pytest.approx([0.4] * 4, abs=0.02)


@pytest.mark.parametrize("target", [0.2, pytest.param(0.7, marks=slow)])
def test_sampling_is_steered_by_what_evaluation_will_do(
    sines: PreparedDataset, tmp_path: Path, target: float
) -> None:
    training = replace(LEARNING, target_rate=target)
    result = fit(small(POLICIES["gumbel"]), sines, training, tmp_path / "model")
    assert result.validation_metrics["activation_rate"] == pytest.approx(target, abs=0.06)


def stop_at(step: int) -> Callable[[Progress], None]:
    def on_progress(progress: Progress) -> None:
        if progress.step == step:
            raise KeyboardInterrupt

    return on_progress


@EVERY
def test_a_stopped_run_ends_like_an_undisturbed_one(
    sines: PreparedDataset, tmp_path: Path, policy: PolicyConfig
) -> None:
    """Noise, schedules and predictors follow from the step's number."""
    training = replace(SHORT, z_weight=1e-3, entropy_weight=1e-2)
    straight = fit(small(policy), sines, training, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        fit(small(policy), sines, training, tmp_path / "model", on_progress=stop_at(7))
    torch.rand(5)
    resumed = fit(small(policy), sines, training, tmp_path / "model")
    ours, expected = (
        load_file(result.checkpoint / "weights.safetensors") for result in (resumed, straight)
    )
    assert ours.keys() == expected.keys()
    assert all(ours[name].equal(expected[name]) for name in ours)


def test_schedules_follow_the_share_of_steps_also_behind_a_stop(
    sines: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, shares = small(POLICIES["gumbel"]), []
    original = StraightThrough.set_progress

    def spy(policy: StraightThrough, share: float) -> None:
        original(policy, share)
        assert policy.temperature.item() == pytest.approx(ANNEALED.at(share))
        if policy.layer == 0:
            shares.append(share)

    monkeypatch.setattr(StraightThrough, "set_progress", spy)
    with pytest.raises(KeyboardInterrupt):
        fit(config, sines, SHORT, tmp_path / "model", on_progress=stop_at(6))
    fit(config, sines, SHORT, tmp_path / "model")
    assert shares == [step / SHORT.max_steps for step in range(SHORT.max_steps)]


class TestWhatFits:
    @pytest.mark.parametrize(
        ("field", "value"), [("target_rate", 0.3), ("z_weight", 1e-3), ("entropy_weight", -0.1)]
    )
    @pytest.mark.parametrize("policy", [NeverConfig(), PeriodicConfig(stride=2)], ids=str)
    def test_a_fixed_policy_has_nothing_to_regularise(
        self, sines: PreparedDataset, policy: PolicyConfig, field: str, value: float
    ) -> None:
        training = replace(SHORT, **{field: value})  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=f"^{field}: the model has no policy that learns"):
            check_fit(small(policy), sines, training)
        check_fit(small(policy), sines, SHORT)

    @EVERY
    def test_every_other_policy_has(self, sines: PreparedDataset, policy: PolicyConfig) -> None:
        training = replace(SHORT, target_rate=0.4, z_weight=1e-3, entropy_weight=-0.1)
        check_fit(small(policy), sines, training)

    @pytest.mark.parametrize("name", ["top-k", "budget"])
    def test_two_rates_contradict_each_other(self, sines: PreparedDataset, name: str) -> None:
        with pytest.raises(
            ConfigError, match=r"^target_rate: the policy '\w+' holds a rate of 0.4"
        ):
            check_fit(small(POLICIES[name]), sines, replace(SHORT, target_rate=0.3))

    def test_a_policy_of_one_s_own_is_regularised(
        self, sines: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from sma_core import routing

        @dataclass(frozen=True, kw_only=True)
        class OwnConfig(PolicyConfig):
            kind: ClassVar[str] = "test_own_training"

        class Own(Policy):
            def forward(self, logits: Tensor, position: Tensor) -> RoutingDecision:
                p = (logits[..., 1] - logits[..., 0]).sigmoid()
                return RoutingDecision(active=p > 0.5, confidence=p, logits=logits, probability=p)

        monkeypatch.setattr(routing, "POLICIES", dict(routing.POLICIES))
        register_policy(OwnConfig, Own)
        training = replace(SHORT, target_rate=0.4, z_weight=1e-3, entropy_weight=1e-3)
        result = fit(small(OwnConfig()), sines, training, tmp_path / "model")
        assert result.steps == SHORT.max_steps


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("z_weight", -1.0, "z_weight: must be at least 0, not -1.0"),
        ("entropy_weight", float("inf"), "entropy_weight: must be finite, not inf"),
        ("entropy_weight", "much", "entropy_weight: must be a number, not 'much'"),
    ],
)
def test_settings_are_checked(field: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainingConfig(**{field: value})  # type: ignore[arg-type]
