"""Replay held-out time through every arm, and measure."""
