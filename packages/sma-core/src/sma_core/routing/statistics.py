"""How much each router ran, how evenly and how surely: counts that add up over batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sma_core.errors import ConfigError

# A router is called collapsed below this share of steps, or above its complement.
COLLAPSE_RATE = 0.01
# bfloat16 rounds a logit between 1 and 2 to a multiple of this: a smaller margin is noise there.
CLOSE_MARGIN = 2.0**-7
# A share of steps that is worth a word: of close margins, or of rows without a slot.
NOTABLE_SHARE = 0.1
# One sequence has it all when this share of the runs is in less than half of the steps.
HOARD_SHARE = 0.9

# Margins are counted in bins, eight in each octave of magnitude from 2^-20 to 2^20 and one for what
# is smaller. Counts are whole numbers, so that parts of a data set add up to the whole exactly.
_OCTAVES = 20
_PER_OCTAVE = 8
_CENTRE = 2 * _OCTAVES * _PER_OCTAVE


@dataclass(frozen=True, kw_only=True, eq=False)
class RoutingStatistics:
    """Counts of the decisions of L layers about M sub-modules, over B sequences.

    Made by `routing_statistics` or `RoutingTrace.statistics`. Batches are joined by `merge`: the
    result is that of all sequences in one batch, to the last bit.

    Parameters
    ----------
    names : tuple of str
        Of the sub-modules.
    steps : Tensor
        Valid steps of each sequence.
    runs : Tensor
        Steps at which each sub-module ran, by layer and sequence.
    dropped : Tensor
        Steps at which it was to run and found no slot, in the ``capacity`` layout; else 0.
    alike : Tensor
        Steps at which all sub-modules of a layer ran, or none of them.
    unlike_margin : Tensor
        Steps at which something else than the sign of the margin decided: a budget, a top-k.
    margins : Tensor or None
        Number of valid steps by bin of the margin; None for policies without logits.
    """

    names: tuple[str, ...]
    steps: Int[Tensor, "B"]
    runs: Int[Tensor, "L B M"]
    dropped: Int[Tensor, "L B M"]
    alike: Int[Tensor, "L"]
    unlike_margin: Int[Tensor, "L M"]
    margins: Int[Tensor, "L M bins"] | None = None

    def merge(self, other: "RoutingStatistics") -> "RoutingStatistics":
        """Join with the statistics of further sequences of the same model.

        Raises
        ------
        ConfigError
            They are about other layers or sub-modules, or one has margins and the other none.
        """
        layers, others = self.runs.shape[0], other.runs.shape[0]
        if (self.names, layers) != (other.names, others):
            raise ConfigError(
                f"names: {layers} layers of {', '.join(self.names)} cannot be joined with "
                f"{others} layers of {', '.join(other.names)}; take both from one model"
            )
        if (self.margins is None) != (other.margins is None):
            raise ConfigError("margins: one of the two has none; take both from one policy")
        margins = self.margins
        if margins is not None and other.margins is not None:
            margins = margins + other.margins
        return RoutingStatistics(
            names=self.names,
            steps=torch.cat((self.steps, other.steps)),
            runs=torch.cat((self.runs, other.runs), dim=1),
            dropped=torch.cat((self.dropped, other.dropped), dim=1),
            alike=self.alike + other.alike,
            unlike_margin=self.unlike_margin + other.unlike_margin,
            margins=margins,
        )

    @property
    def rate(self) -> Float[Tensor, "L M"]:
        """Activation rate: share of valid steps at which each sub-module ran."""
        return self.runs.sum(1) / self.steps.sum().clamp_min(1)

    @property
    def never(self) -> Float[Tensor, "L M"]:
        """Share of the sequences, those without a step left out, in which it never ran."""
        return self._share_of_sequences(self.runs == 0)

    @property
    def always(self) -> Float[Tensor, "L M"]:
        """Share of the sequences, those without a step left out, in which it ran at every step."""
        return self._share_of_sequences(self.runs == self.steps[:, None])

    @property
    def density(self) -> Float[Tensor, "B"]:
        """Share of a sequence's decisions, over all layers and sub-modules, that were to run.

        NaN for a sequence without a step.
        """
        layers, _, pool = self.runs.shape
        return self.runs.sum((0, 2)) / (self.steps * (layers * pool))

    @property
    def close(self) -> Float[Tensor, "L M"] | None:
        """Share of valid steps whose margin is smaller than `CLOSE_MARGIN` in magnitude."""
        if self.margins is None:
            return None
        reach = (_exponent(CLOSE_MARGIN) + _OCTAVES) * _PER_OCTAVE
        inside = self.margins[..., _CENTRE - reach : _CENTRE + reach + 1].sum(-1)
        return inside / self.steps.sum().clamp_min(1)

    def margin_quantile(self, share: float) -> Float[Tensor, "L M"] | None:
        """Margin that a share of the valid steps does not exceed, to within 1/16 of itself.

        Margins are run logit minus skip logit. NaN without a step; None for policies without
        logits. Magnitudes below 2^-20 count as 0, and those above 2^20 as that.

        Parameters
        ----------
        share : float
            In [0, 1]; 0.5 for the median.
        """
        if self.margins is None:
            return None
        steps = int(self.steps.sum())
        if not steps:
            return torch.full(self.margins.shape[:2], torch.nan, dtype=torch.float64)
        wanted = min(max(1, round(share * steps)), steps)
        return _bin_values()[(self.margins.cumsum(-1) >= wanted).int().argmax(-1)]

    def warnings(self) -> list[str]:
        """Say in plain words where routing went wrong, and what to do about it.

        Of fixed policies, those without margins, only dropped rows are told: otherwise they do
        what they were told to.
        """
        found: list[str] = []
        steps = int(self.steps.sum())
        if not steps:
            return found
        rate = self.rate.tolist()
        close = None if self.close is None else self.close.tolist()
        for layer in range(self.runs.shape[0]):
            for m, name in enumerate(self.names):
                where = f"layer {layer}: {name}"
                if self.margins is not None:
                    found += _collapse(where, rate[layer][m], steps)
                    found += self._uneven(where, layer, m)
                if close is not None and not self.unlike_margin[layer, m]:
                    found += _undecided(where, close[layer][m])
                found += self._overflow(where, layer, m)
            # Where one is always or never on, the line above has said so.
            alive = [COLLAPSE_RATE <= r <= 1 - COLLAPSE_RATE for r in rate[layer]]
            if self.margins is not None and len(self.names) > 1 and all(alive):
                found += self._one_voice(layer, steps)
        return found

    def __str__(self) -> str:
        """Draw up a table, one line a sub-module, with the warnings under it."""
        density = self.density[self.steps > 0]
        heading = f"{int(self.steps.sum()):,} steps in {len(self.steps):,} sequences"
        if len(density):
            low, middle, high = (
                f"{float(part):.0%}" for part in (density.min(), density.median(), density.max())
            )
            heading += f"; density of a sequence {low} to {high}, median {middle}"
        shared = ("ran", "never", "always", "margin 5%", "50%", "95%", "dropped")
        rows: list[tuple[str, ...]] = [("layer", "sub-module", *shared)]
        quantiles = [self.margin_quantile(share) for share in (0.05, 0.5, 0.95)]
        for layer in range(self.runs.shape[0]):
            for m, name in enumerate(self.names):
                shares = (self.rate, self.never, self.always)
                margins = ("-" if q is None else f"{float(q[layer, m]):+.2g}" for q in quantiles)
                rows.append(
                    (
                        str(layer),
                        name,
                        *(f"{float(share[layer, m]):.1%}" for share in shares),
                        *margins,
                        f"{int(self.dropped[layer, :, m].sum()):,}",
                    )
                )
        widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if i == 1 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        return "\n".join([heading, *lines, *(f"! {warning}" for warning in self.warnings())])

    def _share_of_sequences(self, flags: Bool[Tensor, "L B M"]) -> Float[Tensor, "L M"]:
        there = self.steps > 0
        return (flags & there[:, None]).sum(1) / there.sum().clamp_min(1)

    def _uneven(self, where: str, layer: int, m: int) -> list[str]:
        """All or nothing by sequence, or all of it in one."""
        runs, total = self.runs[layer, :, m], int(self.runs[layer, :, m].sum())
        sequences = int((self.steps > 0).sum())
        if sequences < 2 or not total or total == int(self.steps.sum()):
            return []
        if ((runs == 0) | (runs == self.steps)).all():
            return [
                f"{where} ran at every step of {float(self.always[layer, m]):.0%} of the sequences "
                "and at none of the others: the router tells sequences apart, not steps"
            ]
        top = int(runs.argmax())
        share, length = int(runs[top]) / total, int(self.steps[top]) / int(self.steps.sum())
        if share > HOARD_SHARE and length < 0.5:
            return [
                f"{where} ran in sequence {top} almost alone: {share:.0%} of its runs are there, "
                f"in {length:.0%} of the steps; look at what sets that sequence apart"
            ]
        return []

    def _overflow(self, where: str, layer: int, m: int) -> list[str]:
        dropped, ran = (int(part[layer, :, m].sum()) for part in (self.dropped, self.runs))
        if dropped <= NOTABLE_SHARE * (dropped + ran):
            return []
        return [
            f"{where} found no slot at {dropped:,} of the {dropped + ran:,} steps at which it was "
            "to run: raise the capacity, or train with a lower target_rate"
        ]

    def _one_voice(self, layer: int, steps: int) -> list[str]:
        share = int(self.alike[layer]) / steps
        if share <= 1 - COLLAPSE_RATE:
            return []
        return [
            f"layer {layer}: all sub-modules ran or rested together at {share:.1%} of {steps:,} "
            "steps: the router does not choose between them; one of them may do"
        ]


def routing_statistics(
    *,
    active: Bool[Tensor, "L B T M"],
    valid: Bool[Tensor, "B T"],
    names: Sequence[str],
    margin: Float[Tensor, "L B T M"] | None = None,
    dropped: Bool[Tensor, "L B T M"] | None = None,
) -> RoutingStatistics:
    """Count what a batch of decisions did.

    Parameters
    ----------
    active : Tensor
        Where each sub-module ran.
    valid : Tensor
        Which steps are no padding; nothing is counted elsewhere.
    names : sequence of str
        Of the M sub-modules.
    margin : Tensor, optional
        Run logit minus skip logit.
    dropped : Tensor, optional
        Where it was to run and found no slot.

    Returns
    -------
    RoutingStatistics
        On the CPU.

    Raises
    ------
    ConfigError
        The number of names is not M.
    """
    if len(names) != active.shape[-1]:
        raise ConfigError(f"names: {len(names)} names for {active.shape[-1]} sub-modules")
    inside = valid[:, :, None]
    active = active & inside
    dropped = torch.zeros_like(active) if dropped is None else dropped & inside
    wanted = active | dropped
    alike = (active == active[..., :1]).all(-1) & valid
    unlike = torch.zeros(active.shape[0], active.shape[3], dtype=torch.int64)
    if margin is not None:
        unlike = ((wanted != (margin > 0)) & inside).sum((1, 2))
    return RoutingStatistics(
        names=tuple(names),
        steps=valid.sum(1).cpu(),
        runs=active.sum(2).cpu(),
        dropped=dropped.sum(2).cpu(),
        alike=alike.sum((1, 2)).cpu(),
        unlike_margin=unlike.cpu(),
        margins=None if margin is None else _count_bins(margin, inside).cpu(),
    )


def _collapse(where: str, rate: float, steps: int) -> list[str]:
    ran = f"{where} ran at {rate:.1%} of {steps:,} steps"
    if rate < COLLAPSE_RATE:
        return [
            f"{ran}: the model does without it; take it out of the pool, or train with a "
            "target_rate"
        ]
    if rate > 1 - COLLAPSE_RATE:
        return [f"{ran}: the router saves nothing here; train with a target_rate"]
    return []


def _undecided(where: str, close: float) -> list[str]:
    if close <= NOTABLE_SHARE:
        return []
    return [
        f"{where}: at {close:.0%} of the steps the margin is below {CLOSE_MARGIN:.2g}: rounding "
        "may decide there, and another device or a narrower dtype decide otherwise"
    ]


def _exponent(power: float) -> int:
    """log2 of a power of two."""
    return int(torch.frexp(torch.tensor(power)).exponent) - 1


def _count_bins(
    margin: Float[Tensor, "L B T M"], inside: Bool[Tensor, "B T 1"]
) -> Int[Tensor, "L M bins"]:
    """Count valid steps by bin; by exponent and mantissa, so that no logarithm is rounded."""
    size = margin.float().abs().nan_to_num(0.0, posinf=2.0**_OCTAVES)
    mantissa, exponent = torch.frexp(size.clamp(2.0**-_OCTAVES, 2.0**_OCTAVES * (1 - 2.0**-24)))
    part = ((2 * mantissa - 1) * _PER_OCTAVE).long()
    away = 1 + (exponent.long() - 1 + _OCTAVES) * _PER_OCTAVE + part
    away = away.masked_fill(size < 2.0**-_OCTAVES, 0)
    place = _CENTRE + torch.where(margin < 0, -away, away)
    layers, _, _, pool = margin.shape
    counts = place.new_zeros(layers, pool, 2 * _CENTRE + 1)
    weight = inside.expand_as(margin).long()
    return counts.scatter_add(
        2, place.permute(0, 3, 1, 2).flatten(2), weight.permute(0, 3, 1, 2).flatten(2)
    )


def _bin_values() -> Float[Tensor, "bins"]:
    """Middle of each bin."""
    away = torch.arange(_CENTRE)
    octave = 2.0 ** (away // _PER_OCTAVE - _OCTAVES).double()
    middle = octave * (1 + (away % _PER_OCTAVE + 0.5) / _PER_OCTAVE)
    return torch.cat((-middle.flip(0), middle.new_zeros(1), middle))
