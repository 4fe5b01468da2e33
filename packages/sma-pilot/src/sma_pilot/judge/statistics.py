"""Paired block bootstrap over time, and bounds that hold where it has too little to resample.

Entities share their clock and may share incidents, so time is resampled for all of them and for
all arms together: blocks of consecutive bins, wrapped at the end [1]_. A resample is a weight for
each bin, and every metric is a function of those weights.

A percentile bootstrap is too narrow when few events differ between the arms: it cannot draw what
it has not seen, and with no difference at all it has no width. So a bound is the wider one of the
bootstrap's and of one made for small counts.

References
----------
.. [1] D. N. Politis, J. P. Romano, "A circular block-resampling procedure for stationary data",
   in Exploring the Limits of Bootstrap, 1992.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy import special

# With fewer differing events than this their clustering cannot be seen.
FEWEST_FOR_DESIGN_EFFECT = 5
# And with fewer bins than this no autocorrelation can be estimated.
FEWEST_FOR_BLOCK = 10

Statistic = Callable[[NDArray[np.float64]], float]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A difference and its one-sided bounds.

    Attributes
    ----------
    low, high : float
        Each is a bound at 1 - alpha.
    standard_error : float
        Of `value`, under dependence.
    design_effect : float or None
        Variance under dependence over that of independent events; None where there is no such
        yardstick.
    note : str
        Which bound was used, where it was not the bootstrap's.
    """

    value: float
    low: float
    high: float
    standard_error: float
    design_effect: float | None = None
    note: str = ""


def time_bins(time: NDArray[np.int64], period_ns: int) -> tuple[NDArray[np.int64], int]:
    """Cut time into bins of one period; return each row's bin [N] and the number of bins.

    Bins in which no entity has a row do not exist.
    """
    present, bin_of_row = np.unique(time // period_ns, return_inverse=True)
    return bin_of_row.astype(np.int64), present.size


def block_weights(bins: int, block: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Draw one circular block resample; return how often each bin [B] is in it."""
    starts = generator.integers(bins, size=-(-bins // block))
    stops = starts + block
    stops[-1] -= starts.size * block - bins  # the last block is cut to make B bins in all
    edges = np.bincount(starts, minlength=2 * bins + 1) - np.bincount(stops, minlength=2 * bins + 1)
    unwrapped = np.cumsum(edges)
    return (unwrapped[:bins] + unwrapped[bins : 2 * bins]).astype(np.float64)


def bootstrap(
    statistics: Mapping[str, Statistic], bins: int, block: int, resamples: int, seed: int
) -> dict[str, NDArray[np.float64]]:
    """Evaluate every statistic on the same resamples of time; return name -> values [R]."""
    generator = np.random.default_rng(seed)
    values = {name: np.empty(resamples) for name in statistics}
    for index in range(resamples):
        weights = block_weights(bins, block, generator)
        for name, statistic in statistics.items():
            values[name][index] = statistic(weights)
    return values


def choose_block(loss_of_bin: NDArray[np.float64], carries: NDArray[np.bool_], floor: int) -> int:
    """Choose a block length, in bins, from the autocorrelation of the loss.

    Takes the length that Politis and White (2004, corrected 2009) find optimal for the bins that
    carry any loss at all, stretched by their distance: among the many bins without an event the
    memory of the few would drown. Doubled, because that length is chosen for the least squared
    error of the variance, which favours a variance that is too small, and a bound must not be.

    Parameters
    ----------
    loss_of_bin : float64 [B]
    carries : bool [B]
        Bins that can have a loss: those with an event.
    floor : int
        Least length; the largest is half of the bins.
    """
    series = loss_of_bin[carries]
    optimal = 0.0
    if series.size >= FEWEST_FOR_BLOCK and np.ptp(series) > 0:
        # Imported here: it brings pandas along, seconds that reading a result need not wait for.
        from arch.bootstrap import optimal_block_length

        with np.errstate(all="ignore"):
            optimal = float(optimal_block_length(series)["circular"].iloc[0])
        optimal *= 2 * carries.size / series.size
    wanted = max(1, floor, math.ceil(optimal) if math.isfinite(optimal) else 1)
    return min(wanted, max(1, carries.size // 2))


def quantile_bounds(samples: NDArray[np.float64], alpha: float) -> tuple[float, float]:
    """Return the alpha and 1 - alpha quantiles of the samples, outwards to a sample."""
    low = np.quantile(samples, alpha, method="lower")
    return float(low), float(np.quantile(samples, 1 - alpha, method="higher"))


def percentile_bounds(samples: NDArray[np.float64], alpha: float) -> tuple[float, float] | None:
    """Return the `quantile_bounds` of the samples that are finite; None when none is."""
    finite = samples[np.isfinite(samples)]
    return quantile_bounds(finite, alpha) if finite.size else None


def share_upper_bound(count: float, total: float, alpha: float) -> float:
    """Upper bound of a share, exact for independent trials (Clopper and Pearson, 1934)."""
    if count >= total:
        return 1.0
    return float(special.betaincinv(count + 1, total - count, 1 - alpha))


def count_bounds(count: int, alpha: float) -> tuple[float, float]:
    """Bounds of the mean of a Poisson count, exact (Garwood, 1936)."""
    low = float(special.gammaincinv(count, alpha)) if count else 0.0
    return low, float(special.gammaincinv(count + 1, 1 - alpha))


def student(alpha: float, groups: int) -> float:
    """Return the 1 - alpha quantile of Student's t for a variance taken from so many groups."""
    return float(special.stdtrit(max(groups - 1, 1), 1 - alpha))


def paired_upper_bound(
    lost: float, won: float, total: float, alpha: float, z: float | None = None
) -> float:
    """Upper bound of (lost - won) / total, by the score test of paired shares [1]_.

    Where every differing pair is a loss, or none differs, the loss is at most the share of lost
    pairs; the exact bound of that share is taken if it is wider.

    Parameters
    ----------
    lost, won, total : float
        Pairs right under the reference only, under the challenger only, and all; not
        necessarily whole, so that a design effect can shrink them.
    alpha : float
        One-sided error rate.
    z : float, optional
        Quantile to use for the score test; by default the normal one at 1 - alpha.

    References
    ----------
    .. [1] T. Tango, "Equivalence test and confidence interval for the difference in proportions
       for the paired-sample design", Statistics in Medicine 17, 1998.
    """
    quantile = NormalDist().inv_cdf(1 - alpha) if z is None else z

    def rejected(difference: float) -> bool:
        # The share of won pairs that is likeliest if `difference` is true, then Tango's statistic.
        a, c = 2 * total, -won * difference * (1 - difference)
        b = (2 * total - lost + won) * difference - lost - won
        won_share = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
        variance = total * (2 * won_share + difference * (1 - difference))
        distance = total * difference - (lost - won)
        return distance > quantile * math.sqrt(max(variance, 0.0))

    low, high = (lost - won) / total, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if rejected(middle) else (middle, high)
    return max(high, share_upper_bound(lost, total, alpha)) if won == 0 else high


def recall_loss(
    reference: NDArray[np.bool_],
    challenger: NDArray[np.bool_],
    samples: NDArray[np.float64],
    *,
    incidents: int,
    blocks: int,
    alpha: float,
) -> Estimate:
    """Estimate the loss of event recall, reference minus challenger.

    Parameters
    ----------
    reference, challenger : bool [E]
        Which events each caught; E > 0.
    samples : float64 [R]
        The loss on each resample.
    incidents : int
        Groups of events that start together; they count as one each where the resamples cannot
        tell how far events hang together.
    blocks : int
        Whole blocks in the time that was resampled.
    alpha : float
        One-sided error rate of each bound.
    """
    events = reference.size
    lost = int((reference & ~challenger).sum())
    won = int((challenger & ~reference).sum())
    loss = (lost - won) / events
    independent = ((lost + won) / events - loss**2) / events
    finite = samples[np.isfinite(samples)]
    resampled = float(finite.var()) if finite.size else 0.0
    design_effect = max(1.0, resampled / independent) if independent > 0 else 1.0
    few = lost + won < FEWEST_FOR_DESIGN_EFFECT
    if few:
        design_effect = max(design_effect, events / incidents)
    # Bounds cannot use less than one event's worth of evidence.
    design_effect = min(design_effect, float(events))
    counts = (lost / design_effect, won / design_effect, events / design_effect)
    t = student(alpha, blocks)
    high = paired_upper_bound(*counts, alpha, t)
    low = -paired_upper_bound(counts[1], counts[0], counts[2], alpha, t)
    drawn = percentile_bounds(samples, alpha) or (low, high)
    note = ""
    if lost + won == 0:
        note = (
            "the arms agree on every event, so there is nothing to resample; the bound is that of "
            f"{counts[2]:.0f} independent incidents without a difference (rule of three)"
        )
    elif few:
        note = (
            f"only {lost + won} events differ: bounds for small counts, events that start "
            "together counted as one"
        )
    return Estimate(
        value=loss,
        low=min(low, drawn[0]),
        high=max(high, drawn[1]),
        standard_error=math.sqrt(independent * design_effect),
        design_effect=design_effect,
        note=note,
    )


def metric_loss(
    loss: float, samples: NDArray[np.float64], *, incidents: int, blocks: int, alpha: float
) -> Estimate:
    """Estimate the loss of a metric of rows, such as average precision.

    The bound is the wider one of the percentile bootstrap and of Student's t with one degree of
    freedom less than there are incidents or blocks. Without any variance, the loss is at most the
    share of incidents that could differ and have not.
    """
    finite = samples[np.isfinite(samples)]
    error = float(finite.std()) if finite.size else 0.0
    drawn = percentile_bounds(samples, alpha)
    if drawn is None or error <= 1e-12 or incidents < 2:
        reach = share_upper_bound(0, incidents, alpha)
        note = f"the resamples do not differ; the bound is exact for {incidents} incidents"
        return Estimate(
            value=loss, low=loss - reach, high=loss + reach, standard_error=error, note=note
        )
    reach = student(alpha, min(incidents, blocks)) * error
    return Estimate(
        value=loss,
        low=min(drawn[0], loss - reach),
        high=max(drawn[1], loss + reach),
        standard_error=error,
    )
