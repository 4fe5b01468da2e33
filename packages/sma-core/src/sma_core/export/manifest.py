"""What stands beside an exported file, and the comparison that decides whether it is kept."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sma_core.config import config_to_dict
from sma_core.errors import ExportError
from sma_core.export.graphs import MAX_STEPS, Graph
from sma_core.files import digest_of, replacing, sha256_of, write_json

FORMAT = "sma.export"
VERSION = 1
TOLERANCE = 1e-4  # float32, many layers deep, in another order of summation

# Other sizes than those of the trace, one sequence and one step among them: batch, steps.
SIZES = ((1, 1), (2, 150), (4, 33))
STREAM_STEPS = 40

Run = Callable[[tuple[Tensor, ...]], Sequence[Tensor]]


def manifest_path(path: Path) -> Path:
    """Where the manifest of an exported file lies: ``model.onnx.json`` beside ``model.onnx``."""
    return path.with_name(path.name + ".json")


@contextmanager
def exporting(path: Path) -> Iterator[Path]:
    """Yield a path to write to; when the block ends ill, what was there before is there still.

    The manifest goes first and comes last: a file with a manifest is the one it describes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with replacing(path) as partial:
            yield partial
            manifest_path(path).unlink(missing_ok=True)
    finally:
        partial.unlink(missing_ok=True)


def write_manifest(
    path: Path, graph: Graph, *, runtime: str, tools: Sequence[str], check: dict[str, Any]
) -> dict[str, Any]:
    """Describe an exported file beside it; returns what was written."""
    config = config_to_dict(graph.model.config)
    slots = {"inputs": graph.inputs, "outputs": graph.outputs}
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "file": path.name,
        "sha256": sha256_of(path),
        "runtime": runtime,
        "graph": graph.kind,
        **{side: [asdict(slot) for slot in listed] for side, listed in slots.items()},
        # An output `next.x` is the input `state.x` of the step after it.
        "initial_state": graph.initial,
        "max_steps": MAX_STEPS if graph.kind == "parallel" else None,
        "architecture": graph.model.config.architecture,
        "config": config,
        "config_sha256": digest_of(config),
        "versions": {name: _version(name) for name in ("sma-core", "torch", *tools)},
        "verification": check,
    }
    write_json(manifest_path(path), manifest)
    return manifest


@torch.no_grad()
def verify(graph: Graph, run: Run, tolerance: float) -> dict[str, Any]:
    """Compare a runtime with the model on random inputs.

    Parameters
    ----------
    graph
        What was exported.
    run
        The exported graph under its runtime.
    tolerance
        Largest ``||a - b|| / ||b||`` of the predictions of one batch.

    Returns
    -------
    dict
        The largest difference found, for the manifest.

    Raises
    ------
    ExportError
        It differs by more, or holds a NaN.
    """
    compare = _stream_difference if graph.kind == "step" else _difference
    worst = max(compare(graph, run, *size) for size in SIZES)
    if not worst <= tolerance:
        raise ExportError(
            f"the {graph.kind} graph differs from the model by {worst:.3g}, which is more than "
            f"tolerance = {tolerance:g}; nothing was written. A step whose router stands at its "
            "threshold can fall to either side: then raise the tolerance"
        )
    sizes = [list(size) for size in SIZES]
    return {"relative_difference": worst, "tolerance": tolerance, "batch_and_steps": sizes}


def _difference(graph: Graph, run: Run, batch: int, steps: int) -> float:
    tensors = graph.example(batch, steps, seed=batch)
    ours, eager = run(tensors)[0], graph.module(*tensors)[0]
    if ours.shape == eager.shape and ours.dim() == 3:
        valid = torch.arange(steps) < tensors[-1][:, None]
        ours, eager = ours[valid], eager[valid]
    return _relative(ours, eager)


def _stream_difference(graph: Graph, run: Run, batch: int, steps: int) -> float:
    """Both run a stream, each from its own state."""
    steps = min(steps, STREAM_STEPS)
    channels = len(graph.inputs) - len(graph.initial)
    drawn = graph.example(batch, steps, seed=batch)
    states: list[Sequence[Tensor]] = [drawn[channels:]] * 2
    predictions: list[list[Tensor]] = [[], []]
    for t in range(steps):
        event = tuple(tensor[:, t : t + 1] for tensor in drawn[:channels])
        for i, advance in enumerate((run, lambda tensors: graph.module(*tensors))):
            prediction, *states[i] = advance((*event, *states[i]))
            predictions[i].append(prediction)
    return _relative(*(torch.cat(parts, dim=1) for parts in predictions))


def _relative(ours: Tensor, eager: Tensor) -> float:
    if ours.shape != eager.shape:
        return float("inf")
    difference = ((ours - eager).double().norm() / eager.double().norm().clamp_min(1e-30)).item()
    return float("inf") if difference != difference else difference


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
