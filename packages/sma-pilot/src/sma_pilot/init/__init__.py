"""A first plan for a log: what each column is, guessed from all of its rows, and said in words."""

from sma_pilot.init.draft import init_plan

__all__ = ["init_plan"]
