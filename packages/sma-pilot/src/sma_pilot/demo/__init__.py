"""The demo's plant: a seeded generator of SYNTHETIC telemetry, and the plan of a pilot on it.

No plant ever sent this log. It is made so that a pilot has what real logs have: correlated
sensors, shifts and products, drift, silences, duplicated and late rows, and failures that announce
themselves, each kind in its own way.
"""

from sma_pilot.demo.history import DAYS, SEED, VERSION, demo_plan_toml, make_demo_log

__all__ = ["DAYS", "SEED", "VERSION", "demo_plan_toml", "make_demo_log"]
