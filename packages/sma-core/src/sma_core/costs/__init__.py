"""What a model costs at a measured activation: FLOPs, bytes moved, activation memory, a stream.

`model_costs` gives all of it as a table. A sub-module of one's own registers its counts with
`submodule_flops` and `submodule_operations`; a policy overrides `Policy.flops` and
`Policy.operations`.
"""

from sma_core.costs.flops import dense_step_flops, product_flops, step_flops, submodule_flops
from sma_core.costs.members import submodule_operations
from sma_core.costs.memory import parameter_count, state_bytes
from sma_core.costs.table import ModelCosts, PartCosts, model_costs
from sma_core.operations import Extent, Operation, linear

__all__ = [
    "Extent",
    "ModelCosts",
    "Operation",
    "PartCosts",
    "dense_step_flops",
    "linear",
    "model_costs",
    "parameter_count",
    "product_flops",
    "state_bytes",
    "step_flops",
    "submodule_flops",
    "submodule_operations",
]
