"""Service times: percentiles that are estimable, and ratios with the noise of the machine.

Arms serve the same queries, several passes each, at different moments. A resample draws passes,
and in each of them blocks of consecutive queries; the draw is the same for every arm, so that an
event that is costly for all does not pass for a difference. What disturbs one arm in one pass
shows as a difference between passes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray
from scipy import special

from sma_pilot.judge.measurements import (
    BASELINE,
    CANDIDATE_AGAIN,
    FIRST_OF,
    INCUMBENT,
    LatencySample,
)
from sma_pilot.judge.statistics import block_weights, choose_block, quantile_bounds

CONFIDENCE = 0.99
"""Of the early-stopping rule."""
MEDIAN = 50.0
# A query is known by pass and position, packed into one number.
_QUERY_BITS = 40

Interval = tuple[float, float]


def minimum_queries(percentile: float, over: int = 1, confidence: float = CONFIDENCE) -> int:
    """Return the fewest queries that prove a percentile while `over` of them exceed it.

    MLPerf LoadGen's early-stopping rule [1]_: the smallest n such that, were the true share of
    queries over the limit 1 - percentile, no more than `over` of n would be seen with a chance
    of at most 1 - confidence. The default of one is the rule's least for an estimate: it must
    set at least one query aside.

    Parameters
    ----------
    percentile : float
        In (0, 100).

    References
    ----------
    .. [1] MLCommons, "MLPerf Inference Policies", early stopping; loadgen/early_stopping.cc.
    """
    share_over = 1 - percentile / 100
    low, high = over, over + 1
    while special.bdtr(over, high, share_over) > 1 - confidence:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        proven = special.bdtr(over, middle, share_over) <= 1 - confidence
        low, high = (low, middle) if proven else (middle, high)
    return high


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A value and the interval of its resamples; each end is a bound at 1 - alpha."""

    value: float
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class ArmLatency:
    """Service times of one arm, in milliseconds.

    Attributes
    ----------
    queries, passes : int
        Queries of all passes together, and how many passes they come from.
    percentiles : mapping percentile -> Figure
        Only those that `minimum_queries` allows.
    ratios : mapping percentile -> Figure
        Over the incumbent's; of the candidate's second run over its first. Empty without it, and
        for the incumbent.
    mean_ms : float
    mean_ratio : Figure or None
        Mean over the incumbent's, which is what machine time costs; None for the incumbent.
    """

    queries: int
    passes: int
    percentiles: Mapping[float, Figure]
    ratios: Mapping[float, Figure]
    mean_ms: float
    mean_ratio: Figure | None = None


def measure_latency(
    latency: Mapping[str, LatencySample],
    percentiles: tuple[float, ...],
    *,
    resamples: int,
    alpha: float,
    seed: int,
) -> dict[str, ArmLatency]:
    """Measure every arm on the queries that all arms served.

    Returns
    -------
    dict arm -> ArmLatency
        Empty when there is no such query.
    """
    keys, times = _paired(latency)
    queries = keys.size
    if not queries:
        return {}
    estimable = tuple(p for p in percentiles if queries >= minimum_queries(p))
    ranked = {arm: _Ranked(column) for arm, column in times.items()}
    drawn = {(arm, p): np.empty(resamples) for arm in times for p in estimable}
    means = {arm: np.empty(resamples) for arm in times}
    generator = np.random.default_rng(seed)
    borders = np.flatnonzero(np.diff(keys >> _QUERY_BITS, prepend=-1))
    passes = [slice(*ends) for ends in zip(borders, [*borders[1:], queries], strict=True)]
    block = _block(times, passes)
    for index in range(resamples):
        weights = np.zeros(queries)
        for place in generator.integers(len(passes), size=len(passes)):
            size = passes[place].stop - passes[place].start
            weights[passes[place]] += block_weights(size, min(block, size), generator)
        for arm, ranking in ranked.items():
            for percentile, value in zip(estimable, ranking(weights, estimable), strict=True):
                drawn[arm, percentile][index] = value
        for arm, column in times.items():
            means[arm][index] = np.average(column, weights=weights)
    whole = {arm: ranking(np.ones(queries), estimable) for arm, ranking in ranked.items()}
    measured = {}
    for arm, column in times.items():
        figures, ratios, mean_ratio = {}, {}, None
        base = FIRST_OF[arm] if arm == CANDIDATE_AGAIN else INCUMBENT
        if arm != base and base in times:
            ratio = column.mean() / times[base].mean()
            mean_ratio = _figure(ratio, means[arm] / means[base], alpha)
        for place, percentile in enumerate(estimable):
            own = drawn[arm, percentile]
            figures[percentile] = _figure(whole[arm][place], own, alpha)
            if arm != base and base in times:
                ratio = whole[arm][place] / whole[base][place]
                ratios[percentile] = _figure(ratio, own / drawn[base, percentile], alpha)
        measured[arm] = ArmLatency(
            queries=queries,
            passes=len(passes),
            percentiles=figures,
            ratios=ratios,
            mean_ms=float(column.mean()),
            mean_ratio=mean_ratio,
        )
    return measured


class _Ranked:
    """Service times [Q] in rising order; a call gives percentiles under weights [Q]."""

    def __init__(self, times: NDArray[np.float64]) -> None:
        self._order = np.argsort(times, kind="stable")
        self._sorted = times[self._order]

    def __call__(
        self, weights: NDArray[np.float64], percentiles: tuple[float, ...]
    ) -> NDArray[np.float64]:
        """Return the nearest-rank percentiles: a time that was served, never one in between."""
        reached = np.cumsum(weights[self._order])
        wanted = np.array(percentiles) / 100 * reached[-1]
        # The nudge keeps 0.95 x 100 at rank 95 when floating point makes it 95.00000000000001.
        places = np.searchsorted(reached, wanted * (1 - 1e-12))
        return self._sorted[np.minimum(places, self._sorted.size - 1)]


def _figure(value: float, samples: NDArray[np.float64], alpha: float) -> Figure:
    return Figure(value=float(value), interval=quantile_bounds(samples, alpha))


def _paired(
    latency: Mapping[str, LatencySample],
) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]]:
    """Return the keys [Q] of the queries that all arms served, and each arm's milliseconds [Q].

    The baseline informs and does not decide, so it cannot take queries away: it is left out when
    it has not served what the others have.
    """
    keys = {
        arm: (sample.pass_index.astype(np.int64) << _QUERY_BITS) + sample.query
        for arm, sample in latency.items()
    }
    deciding = [own for arm, own in keys.items() if arm != BASELINE]
    if not deciding:
        return np.zeros(0, dtype=np.int64), {}
    common = reduce(np.intersect1d, deciding)
    times = {}
    for arm, own in keys.items():
        order = np.argsort(own)
        if np.isin(common, own).all():
            used = order[np.searchsorted(own, common, sorter=order)] if common.size else order[:0]
            times[arm] = latency[arm].service_ns[used] / 1e6
    return common, times


def _block(times: Mapping[str, NDArray[np.float64]], passes: list[slice]) -> int:
    """Take the longest block that any pass of any arm asks for, at least its cube root."""
    longest = 1
    for column in times.values():
        for place in passes:
            series = np.log(column[place])
            every = np.ones(series.size, dtype=bool)
            longest = max(longest, choose_block(series, every, round(series.size ** (1 / 3))))
    return longest
