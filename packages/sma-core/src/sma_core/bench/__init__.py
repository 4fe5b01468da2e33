"""Measure the model against its peers on this machine: ``python -m sma_core.bench --help``."""
