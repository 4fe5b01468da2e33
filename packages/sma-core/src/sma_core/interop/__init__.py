"""Weights of other people's code, read into this library's modules."""
