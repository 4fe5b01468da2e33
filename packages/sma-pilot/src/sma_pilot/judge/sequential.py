"""Looking more than once: levels of planned looks, and evidence that may be read at any time.

A go is sought at a few looks that the plan fixes. Looking k times at level alpha would pass a bad
candidate more often than alpha, so the looks share one alpha: the spending function says how much
of it is used up by when [1]_, and the level of each look follows from the joint distribution of
the looks' estimates, which have independent increments [2]_.

Harm is watched all the time, for which no schedule fits. There the evidence is an e-process [3]_:
the wealth of a gambler who bets, block of time after block, that the candidate loses more than
the limit. If it does not, the chance that the wealth ever reaches 1 / alpha is at most alpha.

References
----------
.. [1] K. K. G. Lan, D. L. DeMets, "Discrete sequential boundaries for clinical trials",
   Biometrika 70, 1983.
.. [2] P. Armitage, C. K. McPherson, B. C. Rowe, "Repeated significance tests on accumulating
   data", Journal of the Royal Statistical Society A 132, 1969.
.. [3] I. Waudby-Smith, A. Ramdas, "Estimating means of bounded random variables by betting",
   Journal of the Royal Statistical Society B 86, 2024.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

Spending = Literal["obrien_fleming", "pocock"]

_NORMAL = NormalDist()
# The integration: half-width in standard deviations, and points; levels are exact to five digits.
_REACH = 9.0
_POINTS = 401
# Shares of the largest bet that never ruins. A small one suits a small excess, a large one a flood.
_BETS = np.geomspace(0.02, 0.8, 8)


def spent(time: float, alpha: float, spending: Spending) -> float:
    """Return how much of `alpha` may be used up at `time`, a share of the whole in (0, 1].

    ``obrien_fleming``: 2 - 2 Phi(z_{alpha / 2} / sqrt(t)), next to nothing early on.
    ``pocock``: alpha ln(1 + (e - 1) t), about evenly.
    """
    if spending == "pocock":
        return alpha * math.log1p((math.e - 1) * time)
    z = _NORMAL.inv_cdf(1 - alpha / 2)
    return float(2 * special.ndtr(-z / math.sqrt(time)))


@lru_cache
def nominal_levels(times: tuple[float, ...], alpha: float, spending: Spending) -> tuple[float, ...]:
    """Return the one-sided level of each look such that all of them together have level `alpha`.

    Parameters
    ----------
    times : tuple of float
        When each look comes, as a share of the whole: rising, the last is 1. They stand for the
        shares of information, too.
    alpha : float
        One-sided error rate of all looks together, in (0, 0.5).
    spending : "obrien_fleming" or "pocock"

    Raises
    ------
    ValueError
        When times do not rise within (0, 1].
    """
    if not times or not all(a < b for a, b in zip((0.0, *times), times, strict=False)):
        raise ValueError(f"times of looks must rise from over 0, got {tuple(times)}")
    if times[-1] > 1:
        raise ValueError(f"times of looks are shares of the whole, got {times[-1]}")
    levels: list[float] = []
    grid = density = np.empty(0)
    used = 0.0
    for place, time in enumerate(times):
        budget = spent(time, alpha, spending) - used
        used += budget
        if place == 0:
            z = -_NORMAL.inv_cdf(budget)
            grid = _grid(z, time)
            density = np.exp(-(grid**2) / (2 * time)) / math.sqrt(2 * math.pi * time)
        else:
            step = math.sqrt(time - times[place - 1])
            weights = density * _trapezoid(grid)

            def crossing(z: float, step=step, weights=weights, grid=grid, time=time) -> float:
                border = z * math.sqrt(time)
                return float(weights @ special.ndtr((grid - border) / step))

            z = _root(lambda z, f=crossing, b=budget: f(z) - b)
            wider = _grid(z, time)
            kernel = np.exp(-((wider[:, None] - grid[None, :]) ** 2) / (2 * step**2))
            density = kernel @ weights / (math.sqrt(2 * math.pi) * step)
            grid = wider
        levels.append(float(special.ndtr(-z)))
    return tuple(levels)


def evidence_of_loss(block_means: NDArray[np.float64], limit: float) -> NDArray[np.float64]:
    """Return the evidence, after each block, that the mean loss exceeds `limit`.

    The average of `len(_BETS)` gamblers' wealths, each of whom multiplies by 1 + b (x - limit)
    at a block of mean x; from 1 on. Blocks may be as dependent as they like within themselves;
    between each other, given all before, a block's mean must not exceed the limit on average for
    the evidence to stay low.

    Parameters
    ----------
    block_means : float64 [N]
        Mean paired loss of each block, in [-1, 1].
    limit : float
        In [0, 1).

    Returns
    -------
    float64 [N]
        Reaches 1 / alpha with a chance of at most alpha, if no block's mean exceeds the limit.
    """
    means = np.asarray(block_means, dtype=np.float64)
    if means.size and not (means.min() >= -1 and means.max() <= 1):
        raise ValueError(f"block means must lie in [-1, 1], got {means.min()} to {means.max()}")
    # 1 + b (x - limit) stays over zero for x = -1 while b < 1 / (1 + limit).
    bets = _BETS / (1 + limit)
    log_wealth = np.cumsum(np.log1p(bets[:, None] * (means[None, :] - limit)), axis=1)
    return np.exp(special.logsumexp(log_wealth, axis=0) - math.log(bets.size))


def _root(function: Callable[[float], float]) -> float:
    return cast(float, optimize.brentq(function, -2.0, 12.0, xtol=1e-9))


def _grid(z: float, time: float) -> NDArray[np.float64]:
    """Values of the running sum that go on: from far below to the border."""
    scale = math.sqrt(time)
    return np.linspace(-_REACH * scale, min(z, _REACH) * scale, _POINTS)


def _trapezoid(grid: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.full(grid.size, grid[1] - grid[0])
    weights[[0, -1]] /= 2
    return weights
