"""Measurements and a plan in, a verdict with reasons out: pure functions, no file, no clock."""
