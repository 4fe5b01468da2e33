"""What is right and wrong with a log, in words: rules over its facts and the plan. No I/O."""

from sma_pilot.logs.facts import LogFacts
from sma_pilot.logs.findings.answers import labels, proof
from sma_pilot.logs.findings.channels import channels, leakage, words
from sma_pilot.logs.findings.classes import classes
from sma_pilot.logs.findings.finding import LEVELS, Finding, Level
from sma_pilot.logs.findings.rows import clock, order, schema, slices
from sma_pilot.plan import Plan

__all__ = ["LEVELS", "Finding", "Level", "find"]


def find(plan: Plan, facts: LogFacts) -> list[Finding]:
    """Apply every rule; errors come first."""
    rules = (schema, clock, order, slices, channels, words, labels, classes, leakage, proof)
    found = [finding for rule in rules for finding in rule(plan, facts)]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))
