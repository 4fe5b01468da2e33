"""What the layer is to reach, as ratios of median times and of peak memory in one run."""

import itertools
from typing import Any, NamedTuple

from sma_core.bench.tables import Report


class LengthGoals(NamedTuple):
    """At one length: how many times faster than whom, and at most which share of memory."""

    train_reference: float
    train_transformer: float
    infer_reference: float
    infer_transformer: float
    train_memory: float
    infer_memory: float


BY_LENGTH = {
    2_048: LengthGoals(5.0, 2.0, 6.0, 1.7, 0.50, 0.30),
    8_192: LengthGoals(6.0, 3.4, 7.0, 2.6, 0.45, 0.30),
    32_768: LengthGoals(10.0, 8.0, 10.0, 6.0, 0.25, 0.12),
}
# Against linear attention, at every length.
LINEAR = {"gla": (2.0, 1.7), "retnet": (2.0, 1.7)}
# Share of the train step at density 1.
SKIPPING = {0.1: 0.6, 0.0: 0.5}
LONG_TOKEN_TIME = 1.3


def judge_layer(report: Report, *, ours: str, density: float, long: int) -> None:
    """Add every goal of the layer that this run has figures for.

    Parameters
    ----------
    report
        With the results of `layer`.
    ours
        Name of the case that stands for us.
    density
        At which peers are compared.
    long
        Length of the long sequence; 0 where there was none.
    """
    results: dict[tuple[int, float | None, str], dict[str, Any]] = {
        (r["length"], r["density"], r["case"]): r for r in report.content["results"]
    }
    lengths = sorted({length for length, _, _ in results if length != long})
    for length in lengths:
        mine = results.get((length, density, ours), {})
        peers = {name: results.get((length, density, name)) for name in _PEERS}
        goals = BY_LENGTH.get(length)
        if goals is not None:
            pairs = {
                "reference": (goals.train_reference, goals.infer_reference),
                "transformer": (goals.train_transformer, goals.infer_transformer),
            } | LINEAR
        else:
            pairs = LINEAR
        for peer, limits in pairs.items():
            theirs = peers[peer]
            if theirs is None:
                continue
            for kind, limit in zip(("train", "infer"), limits, strict=True):
                value = _ratio(theirs[kind]["median_ms"], _median(mine, kind))
                report.goal(
                    f"L {length:,}, {kind}: {ours} faster than {peer}", value, limit, at_least=True
                )
        theirs = peers["reference"]
        if goals is not None and theirs is not None:
            limits = (goals.train_memory, goals.infer_memory)
            for kind, limit in zip(("train", "infer"), limits, strict=True):
                value = _ratio(_bytes(mine, kind), _bytes(theirs, kind))
                what = f"L {length:,}, {kind}: peak memory of {ours} over reference's"
                report.goal(what, value, limit, at_least=False)
        _judge_skipping(report, results, length, ours)
    if long and (long, density, ours) in results and lengths:
        base = 8_192 if 8_192 in lengths else lengths[-1]
        for kind in ("train", "infer"):
            each = [
                _ratio(_median(result, kind), float(result["tokens"]))
                for result in (results[long, density, ours], results.get((base, density, ours)))
                if result is not None
            ]
            what = f"{kind}: time per token at {long:,} over that at {base:,}"
            value = _ratio(*each) if len(each) == 2 else None
            report.goal(what, value, LONG_TOKEN_TIME, at_least=False)


_PEERS = ("reference", "transformer", *LINEAR)


def _judge_skipping(
    report: Report, results: dict[Any, dict[str, Any]], length: int, ours: str
) -> None:
    times = {
        density: _median(result, "train")
        for (steps, density, name), result in results.items()
        if steps == length and name == ours and density is not None
    }
    if 1.0 not in times:
        return
    for density, limit in SKIPPING.items():
        if density in times:
            value = _ratio(times[density], times[1.0])
            what = f"L {length:,}, train: density {density:g} over density 1"
            report.goal(what, value, limit, at_least=False)
    ordered = [times[density] for density in sorted(times)]
    if len(ordered) > 2:
        ratios = [_ratio(low, high) for low, high in itertools.pairwise(ordered)]
        falls = None if None in ratios else max(r for r in ratios if r is not None)
        what = f"L {length:,}, train: largest ratio of a density's time to the next higher one's"
        report.goal(what, falls, 1.0, at_least=False)


def _median(result: dict[str, Any], kind: str) -> float | None:
    return result.get(kind, {}).get("median_ms")


def _bytes(result: dict[str, Any], kind: str) -> float | None:
    found = result.get(f"{kind}_bytes")
    return None if found is None else float(found)


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None
