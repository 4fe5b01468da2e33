"""Write ONNX, and compare it under ONNX Runtime."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sma_core.errors import ConfigError, ExportError
from sma_core.export.graphs import GraphKind, build_graph
from sma_core.export.manifest import TOLERANCE, Run, exporting, verify, write_manifest
from sma_core.model import SequenceModel
from sma_core.policy_configs import TopKConfig

TOOLS = ("onnx", "onnxscript", "onnxruntime")


def export_onnx(
    model: SequenceModel,
    path: Path,
    *,
    graph: GraphKind = "parallel",
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    """Write a model as one ONNX file, with a manifest beside it, after comparing both.

    Parameters
    ----------
    model : SequenceModel
        A model of `ModelConfig`. A float32 copy on the CPU is exported, in evaluation.
    path : Path
        File to write, over one that may be there; ``PATH.json`` is the manifest.
    graph : {"parallel", "step"}
        All steps of a batch at once, or one step from a state to the next.
    tolerance : float
        Largest allowed ``||a - b|| / ||b||`` between ONNX Runtime and the model.

    Returns
    -------
    dict
        The manifest.

    Raises
    ------
    ConfigError
        The model holds what the graph cannot express; the message names the field.
    ExportError
        A tool is missing, a part cannot be traced, or ONNX Runtime's numbers differ: then nothing
        is left behind.
    StreamingError
        The step of a bidirectional model was asked for.
    """
    path = Path(path)
    built = build_graph(model, graph)
    _check_sorts(model.config, graph)
    _check_tools()
    names = [[slot.name for slot in side] for side in (built.inputs, built.outputs)]
    with exporting(path) as partial:
        traced = built.capture()
        try:
            with _quiet():
                program = torch.onnx.export(
                    traced,
                    dynamo=True,
                    verbose=False,
                    input_names=names[0],
                    output_names=names[1],
                )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(f"ONNX has no form for a part of the model: {error}") from error
        assert program is not None  # noqa: S101  (with dynamo it never is)
        for node in program.model.graph.all_nodes():  # notes of the exporter, larger than a model
            node.metadata_props.clear()
        program.save(partial)
        check = verify(built, onnx_runner(partial), tolerance)
    return write_manifest(path, built, runtime="onnx", tools=TOOLS, check=check)


def onnx_runner(path: Path) -> Run:
    """Open a file with ONNX Runtime, on one core: tensors in, tensors out."""
    onnxruntime = import_module("onnxruntime")  # an extra, needed here alone
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: it warns of every axis that has another size
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(tensors: tuple[Tensor, ...]) -> list[Tensor]:
        arrays = [tensor.contiguous().numpy() for tensor in tensors]
        found = session.run(None, dict(zip(names, arrays, strict=True)))
        return [torch.from_numpy(array) for array in found]

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back warnings of the exporter about itself: an absent torchvision, empty lists."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _check_sorts(config: Any, graph: GraphKind) -> None:
    """Refuse what sorts stably, which the exporter to ONNX cannot translate; a step never sorts."""
    ahead = isinstance(config.policy, TopKConfig) and config.policy.evaluation == "top_k"
    if graph == "parallel" and (config.dispatch == "capacity" or ahead):
        field = "policy.evaluation: top_k" if ahead else "dispatch: capacity"
        raise ConfigError(
            f"{field} sorts steps by how sure the router is, which cannot be written as ONNX: "
            "use export_package"
        )


def _check_tools() -> None:
    missing = [name for name in TOOLS if find_spec(name) is None]
    if missing:
        raise ExportError(
            f"writing ONNX needs {', '.join(missing)}: pip install 'sma-core[export]'"
        )
