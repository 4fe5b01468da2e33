"""Paired block bootstrap over time, and bounds that hold where it has too little to resample.

Entities share their clock and may share incidents, so time is resampled for all of them and for
all arms together: blocks of consecutive bins, wrapped at the end [1]_. A resample is a weight for
each bin, and every metric is a function of those weights.

A percentile bootstrap is too narrow when few events differ between the arms: it cannot draw what
it has not seen, and with no difference at all it has no width. Nor does it see a memory that is
longer than its blocks. So a bound is the widest one of the bootstrap's, of one made for small
counts, and of one that takes the variance between a few long stretches of time [2]_.

References
----------
.. [1] D. N. Politis, J. P. Romano, "A circular block-resampling procedure for stationary data",
   in Exploring the Limits of Bootstrap, 1992.
.. [2] R. Ibragimov, U. K. Mueller, "t-statistic based correlation and heterogeneity robust
   inference", Journal of Business and Economic Statistics 28, 2010.
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
STRETCHES = 8
"""Long stretches whose variance is the second opinion on dependence. Fewer see a longer memory and
cost power, as Student's t then has fewer degrees of freedom."""

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


def leave_out_stretches(
    statistics: Mapping[str, Statistic], bins: int, stretches: int = STRETCHES
) -> dict[str, NDArray[np.float64]]:
    """Evaluate every statistic with each long stretch of time left out; return name -> values [S].

    A value is NaN where nothing is left to evaluate, such as an event.
    """
    stretch = np.arange(bins) * stretches // max(bins, 1)
    weights = [(stretch != left_out).astype(np.float64) for left_out in range(stretches)]
    return {
        name: np.array([statistic(weight) for weight in weights])
        for name, statistic in statistics.items()
    }


def stretch_variance(left_out: NDArray[np.float64]) -> float:
    """Variance of a statistic by the jackknife over long stretches; NaN where one is NaN."""
    stretches = left_out.size
    return float((stretches - 1) * left_out.var()) if stretches > 1 else float("nan")


def choose_block(loss_of_bin: NDArray[np.float64], carries: NDArray[np.bool_], floor: int) -> int:
    """Choose a block length, in bins, from the autocorrelation of the loss.

    Takes the length that Politis and White (2004, corrected 2009) find optimal for the bins that
    carry any loss at all, stretched by their distance: among the many bins without an event the
    memory of the few would drown. Doubled, because that length is chosen for the least squared
    error of the variance, which favours a variance that is too small, and a bound must not be.
    Of a few differing events no memory can be seen: what they seem to have is chance.

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
    alike = np.unique(series, return_counts=True)[1].max(initial=0)
    if series.size >= FEWEST_FOR_BLOCK and series.size - alike >= FEWEST_FOR_DESIGN_EFFECT:
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
    left_out: NDArray[np.float64],
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
    left_out : float64 [S]
        The loss without each long stretch of time (`leave_out_stretches`).
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
    few = lost + won < FEWEST_FOR_DESIGN_EFFECT

    def design_effect(variance: float) -> float:
        effect = max(1.0, variance / independent) if independent > 0 else 1.0
        if few:
            effect = max(effect, events / incidents)
        # Bounds cannot use less than one event's worth of evidence.
        return min(effect, float(events))

    # Each design effect with the number of groups that it was taken from.
    opinions = [(design_effect(float(finite.var()) if finite.size else 0.0), blocks)]
    between = stretch_variance(left_out)
    if not math.isfinite(between):
        # Without some stretch no event is left: all of the evidence is one stretch.
        opinions.append((float(events), left_out.size))
    elif not few:
        opinions.append((design_effect(between), left_out.size))

    def upper(lost: int, won: int) -> float:
        return max(
            paired_upper_bound(
                lost / effect, won / effect, events / effect, alpha, student(alpha, groups)
            )
            for effect, groups in opinions
        )

    low, high = -upper(won, lost), upper(lost, won)
    effect = max(effect for effect, _ in opinions)
    drawn = percentile_bounds(samples, alpha) or (low, high)
    note = ""
    if lost + won == 0:
        note = (
            "the arms agree on every event, so there is nothing to resample; the bound is that of "
            f"{events / effect:.0f} independent incidents without a difference (rule of three)"
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
        standard_error=math.sqrt(independent * effect),
        design_effect=effect,
        note=note,
    )


def metric_loss(
    loss: float,
    samples: NDArray[np.float64],
    left_out: NDArray[np.float64],
    *,
    incidents: int,
    blocks: int,
    alpha: float,
) -> Estimate:
    """Estimate the loss of a metric of rows, such as average precision.

    The bound is the widest one of the percentile bootstrap, of Student's t on its standard error,
    with one degree of freedom less than there are incidents or blocks, and of Student's t on the
    jackknife over long stretches. Without any variance, the loss is at most the share of
    incidents that could differ and have not.
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
    between = stretch_variance(left_out)
    note = ""
    if math.isfinite(between):
        groups = min(incidents, left_out.size)
        reach = max(reach, student(alpha, groups) * math.sqrt(between))
        error = max(error, math.sqrt(between))
    else:
        reach = max(reach, share_upper_bound(0, 1, alpha))
        note = "all that is ranked as an event lies in one stretch of time, and counts as one"
    return Estimate(
        value=loss,
        low=min(drawn[0], loss - reach),
        high=max(drawn[1], loss + reach),
        standard_error=error,
        note=note,
    )
