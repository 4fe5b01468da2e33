"""How much more data would settle a loss that is still open."""

import math
from statistics import NormalDist

from sma_pilot.judge.result import MoreData
from sma_pilot.judge.statistics import Estimate

POWER = 0.9


def events_needed(estimate: Estimate, limit: float, events: int, alpha: float) -> int | None:
    """Return how many events would prove a loss under `limit`, were the observed loss true.

    The number is (z_alpha + z_power)^2 times the variance of one event's loss, its design effect
    included, over the square of the margin: 8.57 x discordance x design effect / margin^2 at the
    usual 5 % and 90 %. Where a bound for small counts is the wider one, the margin must also hold
    that bound, whose width falls with the number of events.

    Returns
    -------
    int or None
        None when no number of events would do: the loss is already at the limit.
    """
    margin = limit - estimate.value
    if margin <= 0:
        return None
    normal = NormalDist()
    z = normal.inv_cdf(1 - alpha) + normal.inv_cdf(POWER)
    variance_of_one = estimate.standard_error**2 * events
    by_power = variance_of_one * (z / margin) ** 2
    width = (estimate.high - estimate.value) / margin
    if estimate.standard_error == 0:
        # An exact bound on what was never seen shrinks with n, every other with its root.
        return math.ceil(events * width)
    return math.ceil(max(by_power, events * width**2))


def more_data(
    estimate: Estimate,
    *,
    limit: float,
    events: int,
    observed_days: float,
    minimum_events: int,
    minimum_days: float,
    discordance: float | None,
    alpha: float,
    units: str = "events",
) -> MoreData:
    """Say in events and in days at the observed event rate what would settle the loss.

    Parameters
    ----------
    events : int
        Judged events, at least 1.
    minimum_events, minimum_days
        What the judge asks for whatever the loss.
    units : str
        What events are called.
    observed_days : float
        Days of the judged slice in which any entity reported.
    """
    needed = events_needed(estimate, limit, events, alpha)
    if needed is None:
        return MoreData(
            text=(
                f"No amount of data like this would turn the verdict into a pass: the observed "
                f"loss of {estimate.value:.3g} is already at or over the limit of {limit:.3g}."
            ),
            discordance=discordance,
            design_effect=estimate.design_effect,
            power=POWER,
        )
    days_per_event = observed_days / events
    needed = max(needed, minimum_events, math.ceil(minimum_days / days_per_event))
    further = max(needed - events, 0)
    return MoreData(
        text=(
            f"About {needed} judged {units} in all, {further} more than now, or "
            f"{further * days_per_event:.3g} further days at the observed rate, would show a loss "
            f"under {limit:.3g} with a chance of {100 * POWER:g} %, if the true loss is "
            f"the observed {estimate.value:.3g}."
        ),
        events=needed,
        further_events=further,
        days=needed * days_per_event,
        further_days=further * days_per_event,
        discordance=discordance,
        design_effect=estimate.design_effect,
        power=POWER,
    )
