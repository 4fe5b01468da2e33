"""`fit` under `torch.compile`, as a program of its own: checks of shapes do not trace.

``python -m tests.core.compiled_fit BACKEND`` exits with 0 when compiled training gives what
training gives.
"""

import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.core.parallel_program import SLOTS
from tests.core.tasks import SHORT, marker_dataset, sine_dataset, small_sma, small_transformer
from tests.tolerances import assert_close

from sma_core.training import FitResult, fit

PARTS = replace(SHORT, batch_size=7, accumulation_steps=3, activation_checkpointing=True)


def assert_alike(found: FitResult, expected: FitResult, row: str) -> None:
    """Compare weights and history."""
    ours, theirs = (load_file(r.checkpoint / "weights.safetensors") for r in (found, expected))
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert_close(ours[name], theirs[name], row)
    for now, then in zip(found.history, expected.history, strict=True):
        assert now.validation_loss == pytest.approx(then.validation_loss, rel=1e-5)
        assert now.activation_rate == pytest.approx(then.activation_rate, abs=1e-5)


def main(backend: str) -> None:
    """Compare layers and models, compiled and not."""
    row = "float32"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sines, markers = sine_dataset(folder / "sines"), marker_dataset(folder / "markers")
        if backend == "aot_eager":  # the tracer alone, so that float64 costs nothing
            torch.compile = partial(_traced, torch.compile)
            torch.set_default_dtype(torch.float64)
            row = "float64"
        for label, config, data, training in (
            ("slots", replace(small_sma(), dispatch="capacity"), sines, SHORT),
            ("transformer", small_transformer(), sines, SHORT),
            ("parts", SLOTS, markers, PARTS),
        ):
            plain = fit(config, data, training, folder / label)
            for how in ("layers", "model"):
                compiled = replace(training, compile=how)
                assert_alike(fit(config, data, compiled, folder / f"{label} {how}"), plain, row)


def _traced(compile_by, function, *, mode, **options):  # type: ignore[no-untyped-def]
    return compile_by(function, backend="aot_eager", **options)


if __name__ == "__main__":
    main(*sys.argv[1:])
