"""Windowed attention against two loops over rows, and the ring of a stream against a list."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.models import small_blocks
from tests.tolerances import assert_close
from torch import Tensor

from sma_core import GatedAttentionConfig
from sma_core.attention import AttentionCache, build_positions, weigh, windowed_attention
from sma_core.dispatch import PackedDispatch, PaddedDispatch

SCORES = pytest.mark.parametrize("score", ["softmax", "relu2"])
POSITIONS = pytest.mark.parametrize("position", ["rotary", "simple", "local"])


def naive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    group: Tensor,
    *,
    window: int,
    causal: bool,
    score: str,
    bias: Tensor,
) -> Tensor:
    """Every pair of rows; `bias` [R, R] is that of query i and key j."""
    out = torch.zeros(len(query), value.shape[1], dtype=value.dtype)
    for i in range(len(query)):
        seen = [
            j
            for j in range(len(query))
            if group[i] == group[j] and abs(i - j) <= window and not (causal and j > i)
        ]
        scores = torch.stack([query[i] @ key[j] + bias[i, j] for j in seen])
        weights = scores.softmax(0) if score == "softmax" else scores.clamp_min(0) ** 2
        out[i] = weights @ value[seen]
    return out


@SCORES
@POSITIONS
@pytest.mark.parametrize("causal", [True, False])
@settings(max_examples=15, deadline=None)
@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=4), window=st.integers(1, 11))
def test_blocks_equal_every_pair(
    score: str, position: str, causal: bool, counts: list[int], window: int
) -> None:
    torch.manual_seed(0)
    rows = sum(counts)
    group = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    time = torch.randint(1, 4, (rows,)).cumsum(0)
    config = GatedAttentionConfig(
        query_width=4,
        window=window,
        score=score,  # type: ignore[arg-type]
        position=position,  # type: ignore[arg-type]
        max_positions=6,
    )
    scheme = build_positions(config, causal=causal).double()
    query, key, value = (torch.randn(rows, n, dtype=torch.float64) for n in (4, 4, 3))
    bias = torch.zeros(rows, rows, dtype=torch.float64)
    if position != "rotary":
        with torch.no_grad():
            scheme.table.normal_()  # type: ignore[union-attr,operator]
        table: Tensor = scheme.table.detach()  # type: ignore[assignment]
        apart = time[:, None] - time if position == "simple" else None
        if apart is None:
            apart = torch.arange(rows)[:, None] - torch.arange(rows)
        zero = 0 if causal else len(table) // 2
        bias = table[(apart + zero).clamp(0, len(table) - 1)]
    options = {"window": window, "causal": causal, "score": score}
    with small_blocks(), torch.no_grad():
        got = windowed_attention(query, key, value, group, time, scheme=scheme, **options)
    expected = naive_attention(query, key, value, group, bias=bias, **options)
    assert got.shape == expected.shape
    if rows:
        assert_close(got, expected, "float64")


def test_tables_hold_what_their_scheme_can_see() -> None:
    for causal, sides in ((True, 1), (False, 2)):
        for position, reach in (("simple", 9 - 1), ("local", 5)):
            config = GatedAttentionConfig(window=5, max_positions=9, position=position)  # type: ignore[arg-type]
            scheme = build_positions(config, causal=causal)
            assert len(scheme.table) == sides * reach + 1  # type: ignore[arg-type]


def test_rotation_turns_interleaved_pairs_by_the_time_index() -> None:
    config = GatedAttentionConfig(query_width=6)
    x = torch.randn(4, 2, 6, dtype=torch.float64)
    time = torch.tensor([0, 1, 77, 123_456_789_012])
    turned = build_positions(config, causal=True).rotate(x, time)
    for r, t in enumerate(time.tolist()):
        for pair in range(3):
            angle = t * 10_000 ** (-2 * pair / 6)
            a, b = x[r, :, 2 * pair], x[r, :, 2 * pair + 1]
            cos, sin = math.cos(angle), math.sin(angle)
            expected = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1)
            assert_close(turned[r, :, 2 * pair : 2 * pair + 2], expected, "float64")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rotation_of_narrow_rows_keeps_its_angles(dtype: torch.dtype) -> None:
    """The model may be cast; angles of large indices may not."""
    config = GatedAttentionConfig(query_width=6)
    x = torch.randn(3, 2, 6).to(dtype)
    time = torch.tensor([5, 1_000_003, 600_000_007])
    turned = build_positions(config, causal=True).to(dtype).rotate(x, time)
    exact = build_positions(config, causal=True).rotate(x.double(), time)
    assert turned.dtype == dtype
    assert_close(turned, exact, str(dtype).removeprefix("torch."))


def test_scores_of_rotated_rows_depend_on_the_distance_alone() -> None:
    scheme = build_positions(GatedAttentionConfig(query_width=8), causal=True)
    x = torch.randn(1, 2, 8, dtype=torch.float64).expand(5, -1, -1)
    starts = torch.tensor([0, 3, 1000, 10**7, 10**9])
    query = scheme.rotate(x, starts + 12)[:, 0]
    key = scheme.rotate(x, starts)[:, 1]
    scores = (query * key).sum(-1)
    assert_close(scores, scores[:1].expand(5), "float32")  # 1e9 rad leave 7 digits of an angle
    assert_close(scores[:3], scores[:1].expand(3), "float64")


def test_weights_are_zero_where_hidden() -> None:
    scores = torch.tensor([[1.0, 50.0, -2.0]])
    hidden = torch.tensor([[False, True, False]])
    soft = weigh(scores, None, hidden, "softmax")
    assert soft[0, 1] == 0
    assert_close(soft[0, [0, 2]], torch.tensor([1.0, -2.0]).softmax(0), "float32")
    squared = weigh(scores, torch.tensor([1.0, 0.0, 1.0]), hidden, "relu2")
    assert squared.tolist() == [[4.0, 0.0, 0.0]]


# The ring of a stream.


class Ledger:
    """Every row of every sequence ever seen, as a list: what the ring has to agree with."""

    def __init__(self, batch: int, slots: int) -> None:
        self.rows: list[list[int]] = [[] for _ in range(batch)]
        self.slots = slots
        self.next = 1

    def take(self, sequence: int) -> int:
        """A new row, told apart by its number, which is also its time index."""
        self.rows[sequence].append(self.next)
        self.next += 1
        return self.rows[sequence][-1]

    def check(self, cache: AttentionCache) -> None:
        for b, rows in enumerate(self.rows):
            kept = rows[-self.slots :]
            assert cache.count[b] == len(rows)
            held = ~cache.empty[b]
            assert held.sum() == len(kept)
            assert sorted(cache.position[b, held].tolist()) == kept
            assert cache.key[b, held, 0].tolist() == cache.position[b, held].tolist()
            assert cache.value[b, held, 0].tolist() == [
                -n for n in cache.position[b, held].tolist()
            ]
            # Age 0 is the newest row, age 1 the one before it.
            ages = dict(zip(cache.position[b].tolist(), cache.age[b].tolist(), strict=True))
            assert [ages[n] for n in reversed(kept)] == list(range(len(kept)))


def as_rows(numbers: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Key, value and position of rows."""
    position = torch.tensor(numbers, dtype=torch.int64)
    return position.double()[:, None], -position.double()[:, None], position


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.sets(st.integers(0, 2), min_size=1)),
        st.tuples(st.just("chunk"), st.lists(st.integers(0, 7), min_size=3, max_size=3)),
        st.tuples(st.just("select"), st.permutations([0, 1, 2])),
    ),
    max_size=8,
)


@pytest.mark.parametrize("layout", [PackedDispatch, PaddedDispatch])
@settings(max_examples=60, deadline=None)
@given(actions=ACTIONS, window=st.integers(1, 5))
def test_the_ring_holds_the_last_rows(layout, actions: list, window: int) -> None:
    """Pushes to some or all sequences, chunks of any length and reorderings, in any order."""
    ledger = Ledger(3, window + 1)
    cache = AttentionCache.fresh(
        3, window + 1, 1, 1, device=torch.device("cpu"), dtype=torch.float64
    )
    for kind, what in actions:
        if kind == "push":
            runs = sorted(what)
            index = None if len(runs) == 3 else torch.tensor(runs)
            seen = cache.push(*as_rows([ledger.take(b) for b in runs]), index)
            assert seen.count.tolist() == [len(ledger.rows[b]) for b in runs]
            newest = seen.position[seen.age == 0].tolist()
            assert newest == [ledger.rows[b][-1] for b in runs]
        elif kind == "select":
            cache = cache.select(torch.tensor(what))
            ledger.rows = [list(ledger.rows[b]) for b in what]
        else:
            before = [rows[-window:] for rows in ledger.rows]
            active = torch.arange(7) < torch.tensor(what)[:, None]
            time = torch.zeros(3, 7, dtype=torch.int64)
            for b, count in enumerate(what):
                for t in range(count):
                    time[b, t] = ledger.take(b)
            (dispatch,) = layout.plan(active.unsqueeze(-1), time)
            key = dispatch.compress(time.double().unsqueeze(-1))
            joined = cache.join(dispatch.rows, key, -key)
            cache.extend(dispatch.rows, key, -key)
            for b, count in enumerate(what):
                # Side by side in a group of their own: the last W rows, then the new ones.
                mine = joined.group == b
                expected = before[b] + (ledger.rows[b][-count:] if count else [])
                assert joined.position[mine].tolist() == expected
                assert joined.key[mine, 0].tolist() == expected
                assert joined.value[mine, 0].tolist() == [-n for n in expected]
            assert len(joined.group.unique_consecutive()) == len(joined.group.unique())
            assert joined.position[joined.new].equal(dispatch.rows.position)
        ledger.check(cache)


def test_a_fresh_ring_is_empty() -> None:
    cache = AttentionCache.fresh(2, 4, 3, 5, device=torch.device("cpu"), dtype=torch.float32)
    assert cache.empty.all()
    assert cache.count.tolist() == [0, 0]
    assert (cache.key.shape, cache.value.shape) == ((2, 4, 3), (2, 4, 5))
    assert cache.slots == 4


def test_rotation_goes_where_the_weights_go_and_is_not_rounded_with_them() -> None:
    scheme = build_positions(GatedAttentionConfig(query_width=8), causal=True)
    expected = scheme.rotate(torch.ones(1, 2, 8), torch.tensor([1_000_003]))
    assert (
        scheme.half()
        .to("meta")
        .rotate(  # type: ignore[attr-defined]
            torch.ones(1, 2, 8, device="meta"), torch.tensor([3], device="meta")
        )
        .is_meta
    )
    scheme.to_empty(device="cpu")
    assert scheme.rotate(torch.ones(1, 2, 8), torch.tensor([1_000_003])).equal(expected)
