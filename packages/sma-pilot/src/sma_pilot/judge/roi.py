"""What serving costs and what a change is worth: pure arithmetic on prices and measured times.

Two bases. *Usage*: machine time in use, at its price; money is saved if the plant pays by use.
*Capacity*: machines that are paid for whether busy or not; a faster model saves nothing until one
of them is given back, so what the plan does not declare as released counts as kept. docs/money.md
works an example by hand.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

from sma_pilot.plan import Money

MILLION = 1e6
SECONDS_PER_HOUR = 3600.0
HOURS_PER_YEAR = 8760.0

Basis = Literal["usage", "capacity"]
Case = Literal["conservative", "base", "optimistic"]
BASES: Final[tuple[Basis, ...]] = ("usage", "capacity")
CASES: Final[tuple[Case, ...]] = ("conservative", "base", "optimistic")
NEVER = math.inf
"""Years of a payback that does not come."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of serving, in the plan's currency."""

    per_million_events: float
    per_year: float


def serving_cost(seconds_per_event: float, money: Money) -> Cost:
    """Price a machine that takes `seconds_per_event` and does nothing else: the usage basis.

    Parameters
    ----------
    seconds_per_event : float
        One over the offline throughput, or the mean single-stream service time.
    """
    per_event = seconds_per_event / SECONDS_PER_HOUR * money.price_per_hour
    return Cost(per_million_events=per_event * MILLION, per_year=per_event * money.events_per_year)


def capacity_cost(machines: int, money: Money) -> Cost:
    """Price machines that are paid for all hours of a year: the capacity basis."""
    per_year = machines * HOURS_PER_YEAR * money.price_per_hour
    return Cost(per_million_events=per_year / money.events_per_year * MILLION, per_year=per_year)


def machines_kept(ratio: float, machines: int, released: int) -> int:
    """Return how many machines serve after the change, each as busy as those before.

    Work that takes `ratio` of its former time needs that share of the machines, rounded up, and at
    least one. No more than `released` are given back, however fast the candidate is; a slower
    candidate needs more machines than there were.

    Parameters
    ----------
    ratio : float
        Machine time of an event after the change over that before.
    machines, released : int
        See `sma_pilot.plan.Capacity`.
    """
    # The nudge keeps 0.29 x 100 at 29 machines when floating point makes it 29.000000000000004.
    needed = max(1, math.ceil(machines * ratio * (1 - 1e-12)))
    return max(needed, machines - released)


def payback_years(setup: float, saving_per_year: float) -> float:
    """Return the years after which equal yearly savings have paid `setup`, interest aside.

    `NEVER` where nothing is saved.
    """
    return setup / saving_per_year if saving_per_year > 0 else NEVER


def net_present_value(
    setup: float, saving_per_year: float, discount_rate: float, years: int
) -> float:
    """Return what the change is worth today: `setup` at once, savings at the end of each year.

    ``-setup + sum of saving / (1 + rate)^t`` over t = 1 to `years` (Brealey, Myers and Allen,
    "Principles of Corporate Finance", on net present value).
    """
    factors = ((1 + discount_rate) ** -year for year in range(1, years + 1))
    return -setup + saving_per_year * sum(factors)


@dataclass(frozen=True, kw_only=True)
class Fallbacks:
    """What the guard does with an event on average, as a replay measured it.

    Attributes
    ----------
    rate : float
        Share of events that it hands over.
    looks : float
        How often a person is asked, an event.
    seconds : float or None
        Machine time that this takes, in seconds an event; None: not measured.
    in_service_time : bool
        Whether the candidate's time was measured within its guard, so that `seconds` are in it.
    """

    rate: float
    looks: float = 0.0
    seconds: float | None = None
    in_service_time: bool = False


@dataclass(frozen=True, kw_only=True)
class Value:
    """What the change is worth on one basis in one case; None is "not measured".

    Attributes
    ----------
    candidate : Cost or None
        Machine time of the candidate, and of what the guard's fallbacks take.
    saving_per_year : float or None
        The incumbent's machine time less that.
    net_saving_per_year : float or None
        The same less the price of fallbacks and the running cost.
    payback_years : float or None
        `NEVER` where nothing is saved.
    npv : float or None
        Over the plan's horizon, at its discount rate.
    """

    candidate: Cost | None = None
    saving_per_year: float | None = None
    net_saving_per_year: float | None = None
    payback_years: float | None = None
    npv: float | None = None


def incumbent_cost(basis: Basis, seconds_per_event: float, money: Money) -> Cost | None:
    """Price what runs today; None on a basis that the plan has no figures for."""
    if basis == "usage":
        return serving_cost(seconds_per_event, money)
    return None if money.capacity is None else capacity_cost(money.capacity.machines, money)


def fallback_cost_per_year(money: Money, fallbacks: Fallbacks | None) -> float | None:
    """Price a year's fallbacks beside their machine time; None without a measurement or a price.

    This is the only place where they are priced, by the only price that a plan has for them.
    """
    if fallbacks is None:
        return None
    if fallbacks.rate == 0:
        return 0.0
    if money.fallback is None:
        return None
    charged = fallbacks.looks if money.fallback.per == "look" else fallbacks.rate
    return money.events_per_year * charged * money.fallback.amount


def value_of_change(
    basis: Basis,
    *,
    seconds_per_event: float,
    ratio: float,
    money: Money,
    fallbacks: Fallbacks | None = None,
) -> Value:
    """Appraise the candidate in the incumbent's place.

    The machine time of fallbacks comes to that of the candidate, unless it is in there already.
    Fallbacks that were not measured are left out, and whoever shows the figures has to say so;
    fallbacks that happen and have no price leave net saving, payback and net present value
    unmeasured.

    Parameters
    ----------
    basis : Basis
    seconds_per_event : float
        Machine time of the incumbent.
    ratio : float
        The candidate's time over the incumbent's.
    money : Money
    fallbacks : Fallbacks or None
        What the guard does; None: not measured.
    """
    if fallbacks is not None and not fallbacks.in_service_time:
        ratio += (fallbacks.seconds or 0.0) / seconds_per_event
    candidate, saving = None, 0.0
    before = incumbent_cost(basis, seconds_per_event, money)
    if before is not None:
        if basis == "usage":
            candidate = serving_cost(ratio * seconds_per_event, money)
        elif money.capacity is not None:
            held = money.capacity
            kept = machines_kept(ratio, held.machines, held.released)
            candidate = capacity_cost(kept, money)
        if candidate is not None:
            saving = before.per_year - candidate.per_year
    handed = 0.0 if fallbacks is None else fallback_cost_per_year(money, fallbacks)
    if money.running is None or handed is None:
        return Value(candidate=candidate, saving_per_year=saving)
    net = saving - money.running.amount - handed
    payback = npv = None
    if money.setup is not None:
        payback = payback_years(money.setup.amount, net)
        if money.appraisal is not None:
            terms = money.appraisal
            npv = net_present_value(
                money.setup.amount, net, terms.discount_rate, terms.horizon_years
            )
    return Value(
        candidate=candidate,
        saving_per_year=saving,
        net_saving_per_year=net,
        payback_years=payback,
        npv=npv,
    )
