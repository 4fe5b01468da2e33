"""What the plan's candidate would cost at a rate of activation, by the cost model of sma-core."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sma_core.config import ArchitectureConfig, ModelConfig
from sma_core.costs import ModelCosts, model_costs, step_flops
from sma_pilot.errors import RunError


@dataclass(frozen=True)
class Ceilings:
    """What a machine reaches in a second, by ``python -m sma_core.bench floor --json``."""

    flops: float
    bytes: float
    machine: str


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Costs of a forward pass at one rate over those of the same model with everything on.

    Attributes
    ----------
    rate : float
        Share of the steps at which each sub-module runs.
    flops, bytes : float
        Ratios; bytes are the least through memory.
    time : float or None
        Ratio of the least times on the machine of the benchmark; None without one.
    incumbent_flops : float or None
        FLOPs over the incumbent's; None where it is no sequence model.
    """

    rate: float
    flops: float
    bytes: float
    time: float | None
    incumbent_flops: float | None


class CostsAtRates:
    """Costs of one architecture at any rate of activation.

    Parameters
    ----------
    config : ModelConfig
        The candidate.
    incumbent : ArchitectureConfig or None
        What it would replace.
    steps : int
        Rows of a pass.
    ceilings : Ceilings or None
        Of the machine that times are estimated for.
    """

    def __init__(
        self,
        config: ModelConfig,
        incumbent: ArchitectureConfig | None,
        steps: int,
        ceilings: Ceilings | None,
    ) -> None:
        self.config = config
        self._steps = steps
        self._ceilings = ceilings
        self._dense = self._costs(1.0, torch.float32)
        self._dense_time = self._time(1.0)
        self._incumbent = None if incumbent is None else self._flops_of(incumbent)

    def __call__(self, rate: float) -> Saving:
        """Return the costs at `rate` over those at 1."""
        costs = self._costs(rate, torch.float32)
        time, whole = self._time(rate), self._dense_time
        return Saving(
            rate=rate,
            flops=costs.flops / self._dense.flops,
            bytes=costs.forward_bytes / self._dense.forward_bytes,
            time=None if time is None or whole is None else time / whole,
            incumbent_flops=None
            if self._incumbent is None
            else step_flops(self.config, self._rates(rate)) / self._incumbent,
        )

    @property
    def always(self) -> float:
        """Share of the FLOPs that run at every step, whatever is skipped."""
        return self(0.0).flops

    def part_shares(self) -> dict[str, float]:
        """Return the share of the FLOPs of each kind of part, everything on."""
        shares: dict[str, float] = {}
        for part in self._dense.parts:
            name = part.name
            shares[name] = shares.get(name, 0.0) + float(part.flops / self._dense.flops)
        return shares

    def _rates(self, rate: float) -> Sequence[Sequence[float]]:
        return [[rate] * len(self.config.pool)] * self.config.layers

    def _costs(self, rate: float, dtype: torch.dtype) -> ModelCosts:
        return model_costs(self.config, self._rates(rate), steps=self._steps, dtype=dtype)

    def _time(self, rate: float) -> float | None:
        """Return the least seconds of a pass: of each part the longer of computing and moving."""
        if self._ceilings is None:
            return None
        # The ceilings are those of bfloat16 products.
        parts = self._costs(rate, torch.bfloat16).parts
        return sum(
            max(part.flops / self._ceilings.flops, part.forward_bytes / self._ceilings.bytes)
            for part in parts
        )

    def _flops_of(self, incumbent: ArchitectureConfig) -> float:
        if isinstance(incumbent, ModelConfig):
            return step_flops(incumbent, [[1.0] * len(incumbent.pool)] * incumbent.layers)
        return step_flops(incumbent)


def read_ceilings(path: Path) -> Ceilings:
    """Read what ``python -m sma_core.bench floor --json FILE`` measured.

    Raises
    ------
    RunError
        When the file is absent or something else.
    """
    mend = "give the file that `python -m sma_core.bench floor --json FILE` wrote"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content["ceilings"]
        machine = content.get("machine", {})
        named = machine.get("gpu") or machine.get("processor") or "the benchmark's machine"
        ceilings = Ceilings(float(found["flops"]), float(found["bytes"]), str(named))
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); {mend}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: holds no ceilings of a machine; {mend}") from error
    if not (ceilings.flops > 0 and ceilings.bytes > 0):
        raise RunError(f"{path}: ceilings must be above 0; {mend}")
    return ceilings
