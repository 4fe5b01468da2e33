"""The layout of fixed capacity: which rows run, what is reported, and that shapes are static."""

import shutil
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.models import piece, random_inputs, small_config, small_model
from tests.core.parity import LENGTHS, against_reference, run_chunks, run_fast, run_steps
from tests.slow import slow
from tests.tolerances import TOLERANCES, assert_close
from torch import Tensor

from sma_core import (
    AlwaysConfig,
    ModelConfig,
    NeverConfig,
    PeriodicConfig,
    PolicyConfig,
    config_from_dict,
    config_to_dict,
)
from sma_core.dispatch import CapacityDispatch, capacity_slots, keep_surest
from sma_core.reference import reference_forward

ROOT = Path(__file__).parents[2]


def config(capacity: Any = 1.0, **fields: Any) -> ModelConfig:
    return small_config(**({"pool": 3, "dispatch": "capacity", "capacity": capacity} | fields))


def assert_parity(config: ModelConfig, lengths: list[int] = LENGTHS) -> None:
    parity = against_reference(config, torch.float64, lengths)
    limit = TOLERANCES["float64"].relative
    assert parity.output <= limit
    assert parity.gradient <= limit


class TestWhichRowsRun:
    def test_the_surest_of_each_sequence(self) -> None:
        confidence = torch.tensor([[0.9, 0.6, 0.8, 0.7, 1.0], [0.5, 0.9, 0.6, 0.6, 0.6]])
        active = torch.tensor([[1, 1, 1, 1, 0], [0, 0, 1, 1, 1]]).bool()
        kept = keep_surest(active.unsqueeze(-1), confidence.unsqueeze(-1), [2])
        # Of three equals the first two; a step that is not to run takes no slot, however sure.
        assert kept[..., 0].tolist() == [
            [True, False, True, False, False],
            [*[False] * 2, *[True] * 2, False],
        ]

    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_any_decisions(self, data: st.DataObject) -> None:
        batch, steps, pool = (data.draw(st.integers(1, n)) for n in (3, 8, 3))
        cells = batch * steps * pool
        flags = st.lists(st.booleans(), min_size=cells, max_size=cells)
        levels = st.lists(st.sampled_from([0.5, 0.6, 1.0]), min_size=cells, max_size=cells)
        active = torch.tensor(data.draw(flags)).view(batch, steps, pool)
        confidence = torch.tensor(data.draw(levels)).view(batch, steps, pool)
        slots = data.draw(st.lists(st.integers(1, steps), min_size=pool, max_size=pool))
        kept = keep_surest(active, confidence, slots)
        for b in range(batch):
            for m in range(pool):
                wanted = [t for t in range(steps) if active[b, t, m]]
                order = sorted(wanted, key=lambda t: (-confidence[b, t, m].item(), t))
                expected = sorted(order[: slots[m]])
                assert kept[b, :, m].nonzero().flatten().tolist() == expected
        for m, dispatch in enumerate(
            CapacityDispatch.plan(
                kept,
                torch.arange(steps).expand(batch, -1),
                [[batch * size, size] for size in slots],
            )
        ):
            x = torch.randn(batch, steps, 2)
            assert dispatch.compress(x).shape == (batch * slots[m], 2)
            assert dispatch.extract(dispatch.compress(x)).equal(x * kept[..., m, None])

    @pytest.mark.parametrize(
        ("share", "steps", "slots"),
        [(0.1, 30, 3), (2 / 3, 3, 2), (1.0, 7, 7), (0.5, 7, 4), (0.01, 5, 1), (1e-9, 5, 1)],
    )
    def test_slots_of_a_share(self, share: float, steps: int, slots: int) -> None:
        assert capacity_slots(Fraction(share).limit_denominator(10**6), steps) == slots


class TestNumbers:
    @pytest.mark.parametrize("bidirectional", [False, True])
    @pytest.mark.parametrize("capacity", [1.0, 0.2, (0.1, 0.5, 0.3)], ids=str)
    def test_the_specification(self, capacity: Any, bidirectional: bool) -> None:
        assert_parity(config(capacity, bidirectional=bidirectional))

    @pytest.mark.parametrize("policy", [AlwaysConfig(), NeverConfig(), PeriodicConfig(stride=2)])
    def test_fixed_policies(self, policy: PolicyConfig) -> None:
        assert_parity(config(0.3, policy=policy), [14, 0, 5])

    def test_decisions_are_those_of_the_specification(self) -> None:
        own = config(0.2)
        model, inputs = small_model(own), random_inputs(own, LENGTHS)
        expected = reference_forward(model, inputs).active
        for layer, decision in enumerate(model(inputs).decisions):
            for b, length in enumerate(LENGTHS):
                assert decision.active[b, :length].equal(expected[b][layer])

    @pytest.mark.parametrize("bidirectional", [False, True])
    def test_packed_where_nothing_overflows(self, bidirectional: bool) -> None:
        own = config(bidirectional=bidirectional)
        model, inputs = small_model(own), random_inputs(own, LENGTHS)
        packed = small_model(replace(own, dispatch="packed"))
        ours, theirs = model(inputs), packed(inputs)
        for a, b in zip(ours.decisions, theirs.decisions, strict=True):
            assert a.active.equal(b.active)
            assert a.dropped is not None
            assert not a.dropped.any()
            assert b.dropped is None
        for b, length in enumerate(LENGTHS):
            assert_close(ours.prediction[b, :length], theirs.prediction[b, :length], "float64")

    @pytest.mark.parametrize("way", [run_chunks, run_steps])
    def test_streams_where_nothing_overflows(self, way: Any) -> None:
        own = config()
        model, inputs = small_model(own), random_inputs(own, LENGTHS)
        with torch.no_grad():
            assert_close(
                torch.cat(way(model, inputs)), torch.cat(run_fast(model, inputs)), "float64"
            )


class TestOverflow:
    def test_it_is_reported_row_by_row(self) -> None:
        """Of 14, 9 and 1 steps that all want to run, 5 of each sequence of 14 padded steps do."""
        own = config(0.3, policy=AlwaysConfig())
        inputs = random_inputs(own, LENGTHS)
        for decision in small_model(own)(inputs).decisions:
            assert decision.active.sum(1).tolist() == [[5] * 3, [5] * 3, [1] * 3]
            assert decision.dropped is not None
            assert decision.dropped.sum(1).tolist() == [[9] * 3, [4] * 3, [0] * 3]
            assert not (decision.active & decision.dropped).any()
            assert (decision.active | decision.dropped).all(-1).equal(inputs.valid)

    def test_a_sequence_does_not_depend_on_the_others(self) -> None:
        own = config(0.2)
        model, inputs = small_model(own), random_inputs(own, [14, 14, 14])
        alone = inputs.map(lambda tensor: tensor[1:2])
        assert_close(model(alone).prediction, model(inputs).prediction[1:2], "float64")

    def test_what_was_dropped_is_in_no_memory(self) -> None:
        """A chunk has a capacity of its own; a step has none, and runs what the router says."""
        own = config(0.5, policy=AlwaysConfig(), layers=1)
        model, inputs = small_model(own), random_inputs(own, [8])
        state = model.init_state(1)
        model(replace(inputs, lengths=None), state)
        attention = state.layers[0].pool[0]
        assert attention.count.tolist() == [4]
        assert sorted(attention.position[0].tolist()) == [0, 1, 2, 3]
        step = replace(piece(inputs, 7, 8), lengths=None)
        (decision,) = model.step(step, state).decisions
        assert decision.active.all()
        assert decision.dropped is None
        assert attention.count.tolist() == [5]


def test_its_plain_form() -> None:
    own = config((0.5, 1, 0.25))
    assert own.capacity == own.capacity_shares == (0.5, 1.0, 0.25)
    assert config_to_dict(own)["capacity"] == [0.5, 1.0, 0.25]
    assert config_from_dict(config_to_dict(own)) == own
    assert config(1).capacity_shares == (1.0, 1.0, 1.0)


def test_the_host_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an accelerator each of these would wait for all work that was sent there."""
    own = config(0.4)
    layer = small_model(own).layers[0]
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    position, valid = torch.arange(9).expand(2, -1), torch.ones(2, 9, dtype=torch.bool)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a value was read")

    for name in ("item", "tolist", "nonzero", "__bool__", "__int__", "__float__", "__index__"):
        monkeypatch.setattr(Tensor, name, refuse)
    layer(x, position, valid)


@slow
@pytest.mark.parametrize(
    ("layout", "backend", "dtype"),
    [
        ("capacity", "aot_eager", "float32"),
        ("capacity", "aot_eager", "bfloat16"),
        ("packed", "aot_eager", "float32"),
        ("capacity", "inductor", "float32"),
    ],
)
def test_compiled(layout: str, backend: str, dtype: str) -> None:
    if backend == "inductor" and not (shutil.which("c++") or shutil.which("g++")):
        pytest.skip("the default backend needs a C++ compiler")
    command = [sys.executable, "-m", "tests.core.compiled", layout, backend, dtype]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("fine\n")
