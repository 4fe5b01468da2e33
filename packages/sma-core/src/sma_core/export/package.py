"""Write a `torch.export` program, or the machine code that AOTInductor makes of it."""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sma_core.errors import ConfigError, ExportError
from sma_core.export.graphs import GraphKind, any_size, build_graph
from sma_core.export.manifest import TOLERANCE, exporting, verify, write_manifest
from sma_core.model import SequenceModel


def export_package(
    model: SequenceModel,
    path: Path,
    *,
    graph: GraphKind = "parallel",
    compiled: bool = True,
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    """Write a model as one ``.pt2`` file, with a manifest beside it, after comparing both.

    Load a compiled one with `torch._inductor.aoti_load_package`, the other with
    `torch.export.load`. Both run what the file says: load only files that you trust. A compiled one
    takes contiguous tensors alone and does not check that they are.

    Parameters
    ----------
    model : SequenceModel
        A model of `ModelConfig`. A float32 copy on the CPU is exported, in evaluation.
    path : Path
        File to write, over one that may be there; ``PATH.json`` is the manifest.
    graph : {"parallel", "step"}
        All steps of a batch at once, or one step from a state to the next.
    compiled : bool
        AOTInductor: C++ compiled for this machine's kind of processor, which takes minutes. False:
        the graph alone, which any machine with torch runs or compiles.
    tolerance : float
        Largest allowed ``||a - b|| / ||b||`` between the package and the model.

    Returns
    -------
    dict
        The manifest.

    Raises
    ------
    ConfigError
        The name of the file does not end in ``.pt2``, or the model holds what the graph cannot
        express; the message names the field.
    ExportError
        There is no C++ compiler, a part cannot be traced, or the package's numbers differ: then
        nothing is left behind.
    StreamingError
        The step of a bidirectional model was asked for.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise ConfigError(f"path: must end in .pt2, not {path.name!r}")
    built = build_graph(model, graph)
    if compiled:
        _check_compiler()
    with exporting(path) as partial:
        program = built.capture()
        # AOTInductor insists on the ending that a partial file lacks.
        written = partial.with_name(f"{partial.name}.pt2")
        try:
            run: Any
            if compiled:
                with torch.no_grad(), any_size():
                    torch._inductor.aoti_compile_and_package(program, package_path=str(written))
                run = torch._inductor.aoti_load_package(str(written), run_single_threaded=True)
            else:
                torch.export.save(program, written)
                run = torch.export.load(written).module()

            def call(tensors: tuple[Tensor, ...]) -> Any:
                # Compiled code trusts the strides of the trace.
                return run(*(tensor.contiguous() for tensor in tensors))

            check = verify(built, call, tolerance)
            written.replace(partial)
        finally:
            written.unlink(missing_ok=True)
    runtime = "aotinductor" if compiled else "torch.export"
    return write_manifest(path, built, runtime=runtime, tools=(), check=check)


def _check_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        found = shutil.which(get_cpp_compiler())
    except Exception:  # whatever its search raises where there is none
        found = None
    if found is None:
        raise ExportError(
            "AOTInductor needs a C++ compiler, and none was found: install g++ or clang++, or "
            "export with compiled = False"
        )
