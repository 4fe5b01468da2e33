"""Prices of serving: what a million events and a year of them cost on the machine measured.

The cost is that of machine time in use. On a reserved machine a faster model saves no cash until
capacity is given back; the notes of the KPIs say so.
"""

from dataclasses import dataclass

from sma_pilot.plan import Money

MILLION = 1e6
SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of serving, in the plan's currency, on a machine that is always busy."""

    per_million_events: float
    per_year: float


def serving_cost(seconds_per_event: float, money: Money) -> Cost:
    """Price a machine that takes `seconds_per_event` and does nothing else.

    Parameters
    ----------
    seconds_per_event : float
        One over the offline throughput, or the mean single-stream service time.
    """
    per_event = seconds_per_event / SECONDS_PER_HOUR * money.price_per_hour
    return Cost(per_million_events=per_event * MILLION, per_year=per_event * money.events_per_year)
