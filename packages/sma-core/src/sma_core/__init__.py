"""Sparse Modular Activation on stock PyTorch."""
