"""Who is looking: code that a compiler or an exporter traces may want another form."""

import torch


def compiling() -> bool:
    """Whether `torch.compile` traces. An export, which knows no sizes, is another matter."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()
