"""Service times: percentiles that are estimable, and ratios with the noise of the machine.

Arms serve the same queries, several passes each, at different moments. A resample draws blocks
of consecutive queries, the same for every arm (a costly event is costly for all), and passes, for
every arm anew (a disturbance hits the arm that runs).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from sma_pilot.judge.measurements import BASELINE, INCUMBENT, LatencySample
from sma_pilot.judge.statistics import block_weights, choose_block, quantile_bounds

CONFIDENCE = 0.99
"""Of the early-stopping rule."""
MEDIAN = 50.0

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
    queries : int
        Different queries; a further pass times the same again.
    percentiles : mapping percentile -> Figure
        Only those that `minimum_queries` allows.
    ratios : mapping percentile -> Figure
        Over the incumbent's; empty for the incumbent.
    mean_ms : float
    """

    queries: int
    passes: int
    percentiles: Mapping[float, Figure]
    ratios: Mapping[float, Figure]
    mean_ms: float


def measure_latency(
    latency: Mapping[str, LatencySample],
    percentiles: tuple[float, ...],
    *,
    resamples: int,
    alpha: float,
    seed: int,
) -> dict[str, ArmLatency]:
    """Measure every arm on the queries that all arms served in all their passes.

    Returns
    -------
    dict arm -> ArmLatency
        Empty when there is no such query.
    """
    tables = _tables(latency)
    queries = next(iter(tables.values())).shape[1] if tables else 0
    if not queries:
        return {}
    estimable = tuple(p for p in percentiles if queries >= minimum_queries(p))
    ranked = {arm: _Ranked(table) for arm, table in tables.items()}
    drawn = {(arm, p): np.empty(resamples) for arm in tables for p in estimable}
    generator = np.random.default_rng(seed)
    block = _block(tables)
    for index in range(resamples):
        query_weights = block_weights(queries, block, generator)
        for arm, times in ranked.items():
            passes = tables[arm].shape[0]
            pass_weights = np.bincount(generator.integers(passes, size=passes), minlength=passes)
            weights = np.outer(pass_weights, query_weights).ravel()
            for percentile, value in zip(estimable, times(weights, estimable), strict=True):
                drawn[arm, percentile][index] = value
    whole = {arm: times(np.ones(times.size), estimable) for arm, times in ranked.items()}
    measured = {}
    for arm, table in tables.items():
        figures, ratios = {}, {}
        for place, percentile in enumerate(estimable):
            own = drawn[arm, percentile]
            figures[percentile] = _figure(whole[arm][place], own, alpha)
            if arm != INCUMBENT and INCUMBENT in tables:
                ratio = whole[arm][place] / whole[INCUMBENT][place]
                ratios[percentile] = _figure(ratio, own / drawn[INCUMBENT, percentile], alpha)
        measured[arm] = ArmLatency(
            queries=queries,
            passes=table.shape[0],
            percentiles=figures,
            ratios=ratios,
            mean_ms=float(table.mean()),
        )
    return measured


class _Ranked:
    """Service times [P, Q] in rising order; a call gives percentiles under weights [P x Q]."""

    def __init__(self, table: NDArray[np.float64]) -> None:
        flat = table.ravel()
        self._order = np.argsort(flat, kind="stable")
        self._sorted = flat[self._order]
        self.size = flat.size

    def __call__(
        self, weights: NDArray[np.float64], percentiles: tuple[float, ...]
    ) -> NDArray[np.float64]:
        """Return the nearest-rank percentiles: a time that was served, never one in between."""
        reached = np.cumsum(weights[self._order])
        wanted = np.array(percentiles) / 100 * reached[-1]
        # The nudge keeps 0.95 x 100 at rank 95 when floating point makes it 95.00000000000001.
        places = np.searchsorted(reached, wanted * (1 - 1e-12))
        return self._sorted[np.minimum(places, self.size - 1)]


def _figure(value: float, samples: NDArray[np.float64], alpha: float) -> Figure:
    return Figure(value=float(value), interval=quantile_bounds(samples, alpha))


def _tables(latency: Mapping[str, LatencySample]) -> dict[str, NDArray[np.float64]]:
    """Lay out each arm's milliseconds as [passes, queries], over the queries all have in common.

    The baseline informs and does not decide, so it cannot take queries away: it is left out when
    it has not served what the others have.
    """
    common: NDArray[np.int64] | None = None
    for arm, sample in latency.items():
        if arm != BASELINE:
            for served in _queries_of_passes(sample):
                common = served if common is None else np.intersect1d(common, served)
    if common is None or not common.size:
        return {}
    tables = {}
    for arm, sample in latency.items():
        passes = _queries_of_passes(sample)
        if passes and all(np.isin(common, served).all() for served in passes):
            used = np.isin(sample.query, common)
            order = np.lexsort((sample.query[used], sample.pass_index[used]))
            tables[arm] = sample.service_ns[used][order].reshape(-1, common.size) / 1e6
    return tables


def _queries_of_passes(sample: LatencySample) -> list[NDArray[np.int64]]:
    passes = np.unique(sample.pass_index)
    return [np.unique(sample.query[sample.pass_index == number]) for number in passes]


def _block(tables: Mapping[str, NDArray[np.float64]]) -> int:
    """Take the longest block that any pass of any arm asks for, at least the cube root of Q."""
    queries = next(iter(tables.values())).shape[1]
    floor = round(queries ** (1 / 3))
    series = [np.log(times) for table in tables.values() for times in table]
    every = np.ones(queries, dtype=bool)
    return max(choose_block(times, every, floor) for times in series)
