"""A trained model as one file for another runtime: ONNX, or a `torch.export` package.

Every file is compared with the model before it takes its name, and a JSON manifest beside it says
what goes in and comes out.
"""

from sma_core.export.graphs import GraphKind
from sma_core.export.onnx_file import export_onnx
from sma_core.export.package import export_package

__all__ = ["GraphKind", "export_onnx", "export_package"]
