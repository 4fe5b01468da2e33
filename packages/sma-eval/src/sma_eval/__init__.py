"""Ablations over routing policies and sub-module pools, on Ray Tune."""
