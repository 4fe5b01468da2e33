"""The EMA against its recurrence, written out step by step, for every way to run it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tolerances import assert_close
from torch import Tensor

from sma_core.ema import Coefficients, MultiHeadEMA, ema_chunked, ema_fft

SIZES = {"batch": st.integers(1, 3), "width": st.integers(1, 3), "states": st.integers(1, 4)}
SEEDS = st.integers(0, 2**31)


def recurrence(x: Tensor, coefficients: Coefficients, state: Tensor) -> tuple[Tensor, Tensor]:
    """``h = q h + write x; y = sum_n read h``; every state along the way, the first included."""
    log_q, write, read = coefficients
    states, out = [state], []
    for t in range(x.shape[1]):
        states.append(log_q.exp() * states[-1] + write * x[:, t, :, None])
        out.append((read * states[-1]).sum(-1))
    return torch.stack(out, dim=1), torch.stack(states, dim=1)


def draw(seed: int, batch: int, steps: int, width: int, states: int):
    """Inputs, coefficients of all time scales, and a state."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    coefficients = Coefficients(
        -(normal(width, states) * 2).exp(), normal(width, states), normal(width, states)
    )
    return normal(batch, steps, width), coefficients, normal(batch, width, states)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, steps=st.integers(1, 40), chunk=st.integers(1, 17), data=st.data(), **SIZES)
def test_chunks_equal_the_recurrence(
    seed: int, steps: int, chunk: int, data: st.DataObject, batch: int, width: int, states: int
) -> None:
    x, coefficients, state = draw(seed, batch, steps, width, states)
    expected, trail = recurrence(x, coefficients, state)
    got, final = ema_chunked(x, coefficients, state, chunk=chunk)
    assert final is not None
    assert_close(got, expected, "float64")
    assert_close(final, trail[:, -1], "float64")

    lengths = data.draw(st.lists(st.integers(0, steps), min_size=batch, max_size=batch))
    got, final = ema_chunked(x, coefficients, state, torch.tensor(lengths), chunk=chunk)
    assert final is not None
    for b, length in enumerate(lengths):
        assert_close(got[b, :length], expected[b, :length], "float64")
        assert_close(final[b], trail[b, length], "float64")


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, steps=st.integers(1, 70), chunk=st.integers(1, 17), **SIZES)
def test_from_a_zero_state(
    seed: int, steps: int, chunk: int, batch: int, width: int, states: int
) -> None:
    """No state in, no state out; the transform is another way to the same numbers."""
    x, coefficients, state = draw(seed, batch, steps, width, states)
    expected, _ = recurrence(x, coefficients, torch.zeros_like(state))
    got, final = ema_chunked(x, coefficients, chunk=chunk)
    assert final is None
    assert_close(got, expected, "float64")
    assert_close(ema_fft(x, coefficients), expected, "float64")


@pytest.mark.parametrize("steps", [1, 3, 4, 5, 8, 13])
@pytest.mark.parametrize("way", ["chunked", "state", "fft"])
def test_gradients_equal_those_of_the_recurrence(steps: int, way: str) -> None:
    x, coefficients, state = draw(0, 2, steps, 3, 2)
    leaves = [x, *coefficients, state]
    for leaf in leaves:
        leaf.requires_grad_()
    weight = torch.randn(2, steps, 3, dtype=torch.float64)

    def run(fast: bool) -> Tensor:
        if way == "state":
            if not fast:
                y, trail = recurrence(x, coefficients, state)
                return (y * weight).sum() + trail[:, -1].sum()
            y, final = ema_chunked(x, coefficients, state, chunk=4)
            assert final is not None
            return (y * weight).sum() + final.sum()
        if not fast:
            return (recurrence(x, coefficients, torch.zeros_like(state))[0] * weight).sum()
        y = ema_fft(x, coefficients) if way == "fft" else ema_chunked(x, coefficients, chunk=4)[0]
        return (y * weight).sum()

    ours = torch.autograd.grad(run(True), leaves, allow_unused=True)
    theirs = torch.autograd.grad(run(False), leaves, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None and b.any():
            assert_close(a, b, "float64")


def make_ema(width: int, states: int, *, seed: int = 0, **options) -> MultiHeadEMA:
    torch.manual_seed(seed)
    ema = MultiHeadEMA(width, states, **options).double()
    with torch.no_grad():
        for weight in ema.parameters():
            weight.normal_()
    return ema


def by_the_equations(ema: MultiHeadEMA, x: Tensor) -> Tensor:
    """Of Ma et al., one state at a time; the second half of the channels runs backwards."""
    width, states = x.shape[-1], ema.delta.shape[1]
    p = ema.delta.sigmoid()
    q = 1 - p * ema.alpha.sigmoid()
    y = torch.zeros_like(x)
    for half in range(2 if ema.bidirectional else 1):
        order = range(x.shape[1])[:: -1 if half else 1]
        for d in range(width):
            row = d + half * width
            for n in range(states):
                h = torch.zeros(x.shape[0], dtype=x.dtype)
                for t in order:
                    h = q[row, n] * h + p[row, n] * ema.beta[row, n] * x[:, t, d]
                    y[:, t, d] += ema.gamma[row, n] * states**-0.5 * h
    return y + ema.omega * x


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("method", ["chunked", "fft"])
@torch.no_grad()
def test_the_layer_equals_the_equations(bidirectional: bool, method: str) -> None:
    ema = make_ema(3, 2, bidirectional=bidirectional, method=method)
    x = torch.randn(2, 70, 3, dtype=torch.float64)
    y, final = ema(x)
    assert final is None
    assert_close(y, by_the_equations(ema, x), "float64")


@torch.no_grad()
def test_steps_equal_the_equations() -> None:
    ema = make_ema(3, 2)
    x = torch.randn(2, 30, 3, dtype=torch.float64)
    state = ema.init_state(2, x.device, x.dtype)
    y = torch.stack([ema.step(x[:, t], state) for t in range(30)], dim=1)
    assert_close(y, by_the_equations(ema, x), "float64")
    _, final = ema(x, torch.zeros_like(state))
    assert_close(state, final, "float64")


@torch.no_grad()
def test_an_impulse_draws_the_kernel() -> None:
    """``k_l = sum_n gamma sqrt(1/N) p beta q^l``, the convolution that the EMA is."""
    ema = make_ema(2, 3)
    x = torch.zeros(1, 100, 2, dtype=torch.float64)
    x[:, 0] = 1
    y, _ = ema(x)
    p = ema.delta.sigmoid()
    q = 1 - p * ema.alpha.sigmoid()
    lags = torch.arange(100)[:, None, None]
    kernel = (ema.gamma * 3**-0.5 * p * ema.beta * q**lags).sum(-1)
    kernel[0] += ema.omega
    assert_close(y[0], kernel, "float64")


@torch.no_grad()
def test_a_decay_close_to_one_keeps_its_precision_over_long_sequences() -> None:
    """q = 1 - 4e-6 in float32: as a number it has 2 digits left, as a logarithm it has 7."""
    wide = MultiHeadEMA(1, 1).double()
    for name, value in {"delta": -6.0, "alpha": -6.0, "beta": 1.0, "gamma": 1.0}.items():
        getattr(wide, name).fill_(value)
    narrow = MultiHeadEMA(1, 1)
    narrow.load_state_dict(wide.state_dict())
    x = torch.ones(1, 20_000, 1, dtype=torch.float64)
    assert_close(narrow(x.float())[0], wide(x)[0], "float32")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("delta", "alpha"), [(99.0, 99.0), (-999.0, 99.0), (99.0, -999.0)])
def test_saturated_decays_give_numbers_and_gradients(
    dtype: torch.dtype, delta: float, alpha: float
) -> None:
    """A decay of 0 or 1, up to rounding: the state forgets at once, or never."""
    ema = make_ema(2, 2).to(dtype)
    with torch.no_grad():
        ema.delta.fill_(delta)
        ema.alpha.fill_(alpha)
    x = torch.randn(1, 300, 2, dtype=dtype)
    y, _ = ema(x)
    with torch.no_grad():
        assert_close(y, by_the_equations(ema.double(), x.double()), "float32")
        ema.to(dtype)
    y.sum().backward()
    for weight in ema.parameters():
        assert weight.grad is not None
        assert weight.grad.isfinite().all()


def test_narrow_weights_are_summed_wide() -> None:
    """In a bfloat16 model the recurrence runs in float32, and so does its state."""
    ema = make_ema(3, 2).to(torch.bfloat16)
    x = torch.randn(1, 200, 3).to(torch.bfloat16)
    state = ema.init_state(1, x.device, x.dtype)
    assert state.dtype == torch.float32
    y, final = ema(x, state)
    assert y.dtype == torch.bfloat16
    assert final is not None
    assert final.dtype == torch.float32
    exact, wide = ema.float()(x.float(), state)
    assert_close(final, wide, "float32")
    assert_close(y, exact, "bfloat16")


def test_start_values() -> None:
    torch.manual_seed(0)
    ema = MultiHeadEMA(400, 16)
    assert ema.delta.std().item() == pytest.approx(0.2, rel=0.05)
    assert ema.alpha.std().item() == pytest.approx(0.2, rel=0.05)
    assert ema.gamma.std().item() == pytest.approx(1, rel=0.05)
    assert ema.omega.std().item() == pytest.approx(1, rel=0.1)
    sign = torch.tensor([1.0, -1.0]).repeat(8)
    assert (ema.beta - sign).std().item() == pytest.approx(0.02, rel=0.05)
    assert (ema.beta - sign).mean().item() == pytest.approx(0, abs=0.002)
