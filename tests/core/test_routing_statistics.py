"""Statistics of routing: what is counted, that batches add up, and what the warnings say."""

from dataclasses import fields, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.models import random_inputs, small_config, small_model
from torch import Tensor

from sma_core import AlwaysConfig, BudgetConfig, NeverConfig, PolicyConfig
from sma_core.errors import ConfigError
from sma_core.routing.statistics import CLOSE_MARGIN, RoutingStatistics, routing_statistics
from sma_core.trace import routing_trace

LENGTHS = [14, 9, 1, 0]


def statistics_of(
    margin: Tensor, valid: Tensor | None = None, **parts: Tensor
) -> RoutingStatistics:
    """Decisions [L, B, T, M] by the sign of a margin."""
    inside = torch.ones(margin.shape[1:3], dtype=torch.bool) if valid is None else valid
    return routing_statistics(
        **{"active": margin > 0, "margin": margin} | parts,
        valid=inside,
        names=[f"m{i}" for i in range(margin.shape[3])],
    )


def one(margin: Tensor, **parts: Tensor) -> RoutingStatistics:
    """One layer and one sub-module, of margins [B, T]."""
    parts = {name: part[None, :, :, None] for name, part in parts.items()}
    return statistics_of(margin[None, :, :, None].float(), **parts)


class TestCounts:
    def test_equal_a_loop_over_the_decisions(self) -> None:
        trace = routing_trace(
            small_model(config := small_config(pool=3)), random_inputs(config, LENGTHS)
        )
        found = trace.statistics()
        assert trace.margin is not None
        for layer in range(2):
            for m in range(3):
                ran = [trace.active[layer, b, :n, m].tolist() for b, n in enumerate(LENGTHS)]
                assert float(found.rate[layer, m]) == pytest.approx(sum(map(sum, ran)) / 24)
                there = [flags for flags in ran if flags]
                never = sum(not any(flags) for flags in there) / 3
                always = sum(all(flags) for flags in there) / 3
                assert float(found.never[layer, m]) == pytest.approx(never)
                assert float(found.always[layer, m]) == pytest.approx(always)
            alike = sum(
                len(set(trace.active[layer, b, t].tolist())) == 1
                for b, n in enumerate(LENGTHS)
                for t in range(n)
            )
            assert int(found.alike[layer]) == alike
        for b, n in enumerate(LENGTHS[:3]):
            share = float(trace.active[:, b].sum()) / (6 * n)
            assert float(found.density[b]) == pytest.approx(share)
        assert found.density[3].isnan()
        assert int(found.unlike_margin.sum()) == 0

    def test_quantiles_of_margins_are_right_to_a_sixteenth(self) -> None:
        margin = torch.randn(1, 3, 1001, 2, generator=torch.Generator().manual_seed(0)) * 3
        found = statistics_of(margin)
        for share in (0.05, 0.5, 0.95):
            guess = found.margin_quantile(share)
            flat = margin[0].flatten(0, 1)
            exact = flat.quantile(share, dim=0, interpolation="nearest").double()
            assert guess is not None
            assert (guess[0] - exact).abs().le(exact.abs() / 16 + 0.01).all()

    def test_nothing_is_counted_in_padding(self) -> None:
        margin = torch.randn(2, 2, 6, 2, generator=torch.Generator().manual_seed(0))
        dropped = margin < -1
        valid = torch.arange(6) < torch.tensor([[6], [4]])
        found = statistics_of(margin, valid, dropped=dropped)
        margin[:, 1, 4:] = 5.0
        dropped[:, 1, 4:] = True
        again = statistics_of(margin, valid, dropped=dropped)
        for field in fields(found)[1:]:
            assert getattr(found, field.name).equal(getattr(again, field.name))
        # Every decision runs in the padding of `again`: at least that many would be too many.
        assert int(again.runs[:, 1].max()) <= 4

    @pytest.mark.parametrize("value", [1.0, -1.0, 0.75, 3e-6, -1e5, 0.0])
    def test_the_bin_of_a_margin_lies_around_it(self, value: float) -> None:
        guess = one(torch.full((1, 5), value)).margin_quantile(0.5)
        assert guess is not None
        assert float(guess) == pytest.approx(value, rel=1 / 16)

    def test_margins_without_bounds_are_counted_at_the_ends(self) -> None:
        found = one(torch.tensor([[torch.inf, -torch.inf, torch.nan, 1e-30]]))
        values = [found.margin_quantile(share) for share in (0.25, 0.5, 1.0)]
        low, middle, high = (float(value) for value in values if value is not None)
        assert low < -9e5
        assert middle == 0
        assert high > 9e5
        assert found.close is not None
        assert float(found.close) == 0.5

    def test_close_margins_are_counted_exactly(self) -> None:
        below, above = CLOSE_MARGIN * (1 - 1e-6), CLOSE_MARGIN * (1 + 1e-6)
        found = one(torch.tensor([[below, -below, 0.0, above, -above]])).close
        assert found is not None
        assert float(found) == pytest.approx(3 / 5)

    def test_a_policy_without_logits_has_no_margin(self) -> None:
        config = small_config(pool=2, policy=AlwaysConfig())
        found = routing_trace(small_model(config), random_inputs(config, [5, 3])).statistics()
        assert found.close is None
        assert found.margin_quantile(0.5) is None
        assert found.rate.eq(1).all()
        assert "      -" in str(found)

    def test_a_budget_is_seen_to_decide_by_something_else(self) -> None:
        config = small_config(policy=BudgetConfig(rate=0.2, block=2, window=4))
        found = routing_trace(small_model(config), random_inputs(config, [40])).statistics()
        assert int(found.unlike_margin.sum()) > 0

    def test_the_number_of_names_is_checked(self) -> None:
        flags = torch.ones(1, 1, 4, 2, dtype=torch.bool)
        with pytest.raises(ConfigError, match="names: 1 names for 2 sub-modules"):
            routing_statistics(active=flags, valid=flags[0, :, :, 0], names=["a"])


class TestMerge:
    @settings(max_examples=20, deadline=None)
    @given(
        seed=st.integers(0, 99),
        cuts=st.lists(st.integers(0, 6), min_size=1, max_size=3),
        fixed=st.booleans(),
    )
    def test_batches_add_up_exactly(self, seed: int, cuts: list[int], fixed: bool) -> None:
        generator = torch.Generator().manual_seed(seed)
        margin = torch.randn(2, 6, 7, 3, generator=generator).exp() - 1
        active, dropped = margin > 0.2, (margin > 0) & (margin <= 0.2)
        valid = torch.arange(7) < torch.randint(0, 8, (6, 1), generator=generator)
        borders = [0, *sorted(cuts), 6]

        def count(a: int, b: int) -> RoutingStatistics:
            return routing_statistics(
                active=active[:, a:b],
                valid=valid[a:b],
                names=("a", "b", "c"),
                margin=None if fixed else margin[:, a:b],
                dropped=dropped[:, a:b],
            )

        parts = [count(a, b) for a, b in pairwise(borders)]
        merged, whole = parts[0], count(0, 6)
        for part in parts[1:]:
            merged = merged.merge(part)
        for field in fields(whole):
            got, wanted = getattr(merged, field.name), getattr(whole, field.name)
            assert got.equal(wanted) if isinstance(wanted, Tensor) else got == wanted
        assert str(merged) == str(whole)

    def test_other_models_are_refused(self) -> None:
        a = statistics_of(torch.randn(1, 1, 4, 2))
        with pytest.raises(ConfigError, match="1 layers of m0, m1 cannot be joined with 2 layers"):
            a.merge(statistics_of(torch.randn(2, 1, 4, 2)))
        with pytest.raises(ConfigError, match="margins: one of the two has none"):
            a.merge(replace(a, margins=None))


class TestWarnings:
    def test_a_healthy_router_has_none(self) -> None:
        margin = torch.randn(2, 4, 500, 2, generator=torch.Generator().manual_seed(0))
        assert statistics_of(margin).warnings() == []
        assert statistics_of(margin[:, :, :0]).warnings() == []

    @pytest.mark.parametrize(
        ("rate", "words"),
        [
            (0.0, "the model does without it"),
            (0.005, "the model does without it"),
            (0.02, None),
            (0.98, None),
            (0.995, "the router saves nothing here"),
            (1.0, "the router saves nothing here"),
        ],
    )
    def test_both_ends_of_collapse(self, rate: float, words: str | None) -> None:
        ran = torch.arange(1000).flip(0)[None] < 1000 * rate
        found = one(torch.where(ran, 1.0, -1.0)).warnings()
        assert len(found) == (words is not None)
        if words is not None:
            assert words in found[0]
            assert f"m0 ran at {rate:.1%} of 1,000 steps" in found[0]

    def test_a_router_that_tells_sequences_apart_not_steps(self) -> None:
        margin = torch.tensor([1.0, -1.0, -1.0])[:, None].expand(3, 20)
        (found,) = one(margin).warnings()
        assert "ran at every step of 33% of the sequences and at none of the others" in found

    def test_one_sequence_takes_all(self) -> None:
        margin = torch.full((4, 40), -1.0)
        margin[2, :39] = 1.0
        margin[0, 0] = 1.0
        (found,) = one(margin).warnings()
        assert "ran in sequence 2 almost alone: 98% of its runs are there" in found

    def test_margins_that_rounding_could_turn(self) -> None:
        margin = torch.where(torch.arange(100) % 2 == 0, 1.0, -1.0)[None]
        margin[:, :20] *= CLOSE_MARGIN / 2
        (found,) = one(margin).warnings()
        assert "at 20% of the steps the margin is below 0.0078: rounding may decide" in found
        # Where something else than the sign decides, 0 is nothing special.
        assert one(margin, active=margin > 0.5).warnings() == []

    def test_rows_without_a_slot_also_under_a_fixed_policy(self) -> None:
        config = small_config(policy=AlwaysConfig(), dispatch="capacity", capacity=0.5)
        trace = routing_trace(small_model(config), random_inputs(config, [20]))
        found = trace.warnings()
        assert len(found) == 2
        assert "found no slot at 10 of the 20 steps at which it was to run" in found[0]

    def test_sub_modules_that_always_agree(self) -> None:
        margin = torch.randn(1, 1, 300, 1, generator=torch.Generator().manual_seed(0))
        (found,) = statistics_of(margin.expand(-1, -1, -1, 3)).warnings()
        assert "all sub-modules ran or rested together at 100.0% of 300 steps" in found

    @pytest.mark.parametrize("policy", [AlwaysConfig(), NeverConfig()])
    def test_a_fixed_policy_does_what_it_was_told(self, policy: PolicyConfig) -> None:
        config = small_config(pool=2, policy=policy)
        trace = routing_trace(small_model(config), random_inputs(config, [30, 30]))
        assert trace.warnings() == []


def test_the_table_is_one_line_a_sub_module_with_the_warnings_below() -> None:
    margin = torch.full((1, 2, 100, 2), 1.0)
    margin[0, :, ::2, 1] = -1.0
    lines = str(statistics_of(margin)).splitlines()
    assert lines[0] == "200 steps in 2 sequences; density of a sequence 75% to 75%, median 75%"
    assert lines[1].split()[:5] == ["layer", "sub-module", "ran", "never", "always"]
    assert lines[2].split()[:5] == ["0", "m0", "100.0%", "0.0%", "100.0%"]
    assert lines[3].split()[:5] == ["0", "m1", "50.0%", "0.0%", "0.0%"]
    assert len({len(line) for line in lines[1:4]}) == 1
    assert lines[4].startswith("! layer 0: m0 ran at 100.0%")
