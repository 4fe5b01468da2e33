"""Replay historical logs through a sparse model and its incumbent, and judge with evidence."""
