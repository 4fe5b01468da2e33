"""The demo's plan, at its own size and at one for tests."""

import re

from sma_pilot.demo import demo_plan_toml
from sma_pilot.plan import Plan, parse_plan

# Days of the small log: enough for each slice to hold failures, few enough to fit in seconds.
SMALL_DAYS = 18
_SMALL = {
    "files": '["telemetry/*.csv"]',  # a short log has no others
    "max_steps": 12,
    "batch_size": 4,
    "warmup_steps": 2,
    "evaluate_every": 6,
    "evaluate_batches": 2,
    "checkpoint_every": 2,
    "single_stream_events": 40,
    "warmup_events": 5,
    "passes": 2,
}


def demo_plan() -> Plan:
    """The plan as it is shipped."""
    return parse_plan(demo_plan_toml(), "demo")


def small_demo_toml() -> str:
    """The same with a few steps of everything."""
    text = demo_plan_toml()
    for name, value in _SMALL.items():
        text, found = re.subn(rf"(?m)^{name} = [^#\n]+", f"{name} = {value} ", text)
        assert found == 1, name
    return text


def small_demo_plan() -> Plan:
    """See `small_demo_toml`."""
    return parse_plan(small_demo_toml(), "small demo")
