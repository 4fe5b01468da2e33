"""The budget: its bound for any margins, its rate on shifted data, its state in a stream."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.models import random_inputs, small_config, small_model
from torch import Tensor

from sma_core import BudgetConfig
from sma_core.reference_policies import _budget
from sma_core.routing import build_policy
from sma_core.routing.budget import Budget, BudgetState
from sma_core.routing.top_k import largest


def make(config: BudgetConfig, pool: int = 1) -> Budget:
    policy = build_policy(config, width=4, pool=pool, layer=0)
    assert isinstance(policy, Budget)
    return policy


def steer(policy: Budget, margin: Tensor, state: BudgetState | None = None) -> Tensor:
    state = state or policy.init_state(margin.shape[0], margin.device, margin.dtype)
    return policy.steer(margin, None, state)


def correlated(steps: int, seed: int, memory: float = 0.9) -> Tensor:
    """Margins of a smooth signal [1, T, 1]: each remembers the one before."""
    noise = torch.randn(steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    out = [torch.zeros(())]
    for value in noise:
        out.append(memory * out[-1] + (1 - memory**2) ** 0.5 * value)
    return torch.stack(out[1:]).view(1, steps, 1)


@settings(max_examples=60, deadline=None)
@given(
    rate=st.floats(0.02, 0.98),
    block=st.integers(1, 9),
    blocks=st.integers(1, 6),
    pieces=st.lists(
        st.tuples(
            st.sampled_from(["constant", "noise", "rising", "falling", "alternating"]),
            st.integers(1, 80),
            st.floats(-1e4, 1e4),
            st.floats(1e-6, 1e4),
        ),
        min_size=1,
        max_size=5,
    ),
)
def test_the_bound_holds_for_any_margins_at_any_step(
    rate: float, block: int, blocks: int, pieces: list[tuple[str, int, float, float]]
) -> None:
    parts = []
    for kind, steps, level, scale in pieces:
        t = torch.arange(steps, dtype=torch.float64)
        shape = {
            "constant": torch.zeros_like(t),
            "noise": torch.randn(steps, generator=torch.Generator().manual_seed(steps)).double(),
            "rising": t,
            "falling": -t,
            "alternating": (t // block % 2) * 2 - 1,
        }[kind]
        parts.append(level + scale * shape)
    config = BudgetConfig(rate=rate, block=block, window=block * blocks)
    runs = steer(make(config), torch.cat(parts).view(1, -1, 1))[0, :, 0]
    steps = torch.arange(1, len(runs) + 1)
    excess = (runs.cumsum(0) - rate * steps).abs().max()
    assert excess < max(rate, 1 - rate) * config.window + block


SHIFTS = {
    "none": lambda m: m,
    "offset": lambda m: m + 5.0,
    "offset down": lambda m: m - 50.0,
    "scale": lambda m: m * 30.0,
    "reversed": lambda m: -m,
    "jump": lambda m: m + 8.0 * (torch.arange(m.shape[1]) > m.shape[1] // 2)[:, None],
    "drift": lambda m: m + torch.linspace(-6, 6, m.shape[1])[:, None],
    "bursts": lambda m: m + 10.0 * (torch.arange(m.shape[1]) % 400 < 60)[:, None],
    "cubed": lambda m: m**3,
}


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("rate", [0.05, 0.25, 0.6])
@pytest.mark.parametrize("seed", range(3))
def test_the_rate_is_held_on_shifted_data(shift: str, rate: float, seed: int) -> None:
    margin = SHIFTS[shift](correlated(2000, seed))
    runs = steer(make(BudgetConfig(rate=rate)), margin)
    assert runs.double().mean().item() == pytest.approx(rate, abs=0.02)


@pytest.mark.parametrize("shift", ["none", "offset", "scale"])
@pytest.mark.parametrize("seed", range(3))
def test_every_sub_module_of_a_model_holds_its_rate(shift: str, seed: int) -> None:
    """Routers that nobody tuned, on inputs that they were not balanced on."""
    config = small_config(pool=2, policy=BudgetConfig(rate=0.3))
    model, inputs = small_model(config, seed=seed), random_inputs(config, [1500, 1200], seed=seed)
    assert inputs.numeric is not None
    moved = {"none": inputs.numeric, "offset": inputs.numeric + 4, "scale": inputs.numeric * 10}
    with torch.no_grad():
        outputs = model(replace(inputs, numeric=moved[shift]))
    for decision in outputs.decisions:
        for b, length in enumerate((1500, 1200)):
            rates = decision.active[b, :length].double().mean(0)
            assert rates.tolist() == pytest.approx([0.3, 0.3], abs=0.02)


def test_it_runs_the_steps_that_stand_out() -> None:
    """On stationary margins, much as a choice among all steps at once would."""
    margin = torch.randn(1, 4000, 1, generator=torch.Generator().manual_seed(0))
    runs, best = steer(make(BudgetConfig(rate=0.2)), margin), largest(margin, None, 0.2)
    assert (runs & best).sum() > 0.8 * best.sum()


@pytest.mark.parametrize(
    "config",
    [BudgetConfig(rate=0.3), BudgetConfig(rate=0.1, block=5, window=5), BudgetConfig(rate=0.7)],
    ids=str,
)
def test_long_sequences_follow_the_equations(config: BudgetConfig) -> None:
    margin = torch.cat((correlated(400, 1), 4 + correlated(400, 2) * 3), dim=1)
    assert steer(make(config), margin)[0, :, 0].tolist() == _budget(
        config, margin[0, :, 0].tolist()
    )


def test_the_first_block_is_a_plain_argmax() -> None:
    margin = torch.tensor([0.5, 0.0, -0.5, 1.0]).view(1, 4, 1)
    runs = steer(make(BudgetConfig(rate=0.5, block=4, window=8)), margin)
    assert runs.flatten().tolist() == [True, False, False, True]


def test_debts_are_paid_back() -> None:
    """A first block all on, then no block until the excess is within what the window allows."""
    policy = make(BudgetConfig(rate=0.25, block=4, window=4))
    runs = steer(policy, torch.full((1, 24, 1), 3.0)).view(6, 4).sum(1)
    # Debt 3 of a possible 1: nothing; then a constant is a tie with itself, until -3 is reached.
    assert runs.tolist() == [4, 0, 0, 0, 0, 0]
    runs = steer(policy, torch.full((1, 60, 1), 3.0)).view(15, 4).sum(1)
    assert runs.tolist() == [4, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0]


def test_rounding_decides_nothing_on_constant_data() -> None:
    policy = make(BudgetConfig(rate=0.25))
    margin = torch.full((1, 600, 1), 0.3, dtype=torch.float64)
    noise = 1e-6 * torch.randn(1, 600, 1, generator=torch.Generator().manual_seed(0))
    runs = steer(policy, margin)
    assert steer(policy, margin + noise).equal(runs)
    assert runs.any()


@pytest.mark.parametrize("scale", [0.25, 64.0])
def test_the_scale_of_the_margins_does_not_matter(scale: float) -> None:
    policy = make(BudgetConfig(rate=0.25))
    margin = correlated(600, 0)
    runs = steer(policy, margin)
    # The first block asks for the sign, and ties are rare.
    assert (steer(policy, margin * scale) != runs).double().mean() <= 0.005


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(
        st.tuples(st.integers(0, 25), st.integers(0, 25), st.integers(0, 25)),
        min_size=1,
        max_size=6,
    ),
    block=st.integers(1, 7),
    blocks=st.integers(1, 4),
)
def test_sequences_advance_at_their_own_pace(
    counts: list[tuple[int, int, int]], block: int, blocks: int
) -> None:
    """Chunks that end anywhere in a block, empty ones among them: decisions and state are equal."""
    policy = make(BudgetConfig(rate=0.3, block=block, window=block * blocks), pool=2)
    totals = [sum(count) for count in zip(*counts, strict=True)]
    generator = torch.Generator().manual_seed(0)
    margin = torch.randn(3, max(1, *totals) + 25, 2, generator=generator)

    def mask(lengths: list[int], steps: int) -> Tensor:
        return torch.arange(steps) < torch.tensor(lengths)[:, None]

    whole = policy.init_state(3, margin.device, margin.dtype)
    expected = policy.steer(margin, mask(totals, margin.shape[1]), whole)
    state = policy.init_state(3, margin.device, margin.dtype)
    done = [0, 0, 0]
    for count in counts:
        chunk = torch.stack([margin[b, n : n + 25] for b, n in enumerate(done)])
        active = policy.steer(chunk, mask(list(count), 25), state)
        for b, n in enumerate(count):
            assert active[b, :n].equal(expected[b, done[b] : done[b] + n])
            assert not active[b, n:].any()
            done[b] += n
    assert all(a.equal(b) for a, b in zip(state.tensors(), whole.tensors(), strict=True))


def test_a_step_at_a_time_is_bit_equal_in_float32() -> None:
    policy = make(BudgetConfig(rate=0.2), pool=2)
    margin = correlated(300, 0).float().expand(2, -1, 2) + torch.tensor([0.0, 3.0])
    expected = steer(policy, margin)
    state = policy.init_state(2, margin.device, margin.dtype)
    found = [steer(policy, margin[:, t : t + 1], state) for t in range(300)]
    assert torch.cat(found, dim=1).equal(expected)


def test_the_threshold_has_no_gradient_and_the_weight_has() -> None:
    config = small_config(layers=1, policy=BudgetConfig(rate=0.3, block=4, window=8))
    model = small_model(config)
    decision = model(random_inputs(config, [40])).decisions[0]
    assert decision.probability is not None
    expected = torch.where(decision.active, decision.probability, 1 - decision.probability)
    assert decision.confidence.equal(expected)
    assert decision.confidence.requires_grad
