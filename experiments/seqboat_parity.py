"""Compare `sma_core.interop.seqboat` with the public SeqBoat layer, on random weights and inputs.

The layer runs from a copy that you fetch yourself, ``standalone_seqboat.py`` of
github.com/renll/SeqBoat; nothing of it is kept here. From the root of the workspace:

    uv run --with einops python -m experiments.seqboat_parity --reference standalone_seqboat.py

prints the largest relative differences of every combination, and exits with 1 where one is out of
tolerance. ``--record FILE`` writes the small cases that the tests read instead.
"""

import argparse
import importlib.util
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file
from tests.core.parity import Parity
from tests.core.seqboat_cases import Case, Problem, Results, difference, load_ours, run_ours
from tests.tolerances import TOLERANCES
from torch import Tensor

from sma_core.interop.seqboat import translate

BATCH = 3


@dataclass(frozen=True)
class Sizes:
    """Widths D, Z, H, states N, steps T, window W and length P of the table by time."""

    width: int = 16
    query_width: int = 8
    value_width: int = 12
    states: int = 4
    steps: int = 12
    window: int = 16
    max_positions: int = 32


SIZES = {
    "T < W, T < P": Sizes(),
    "T < W, T > P": Sizes(max_positions=8),
    "T > W, T < P": Sizes(steps=48, window=4, max_positions=64),
    "T > W, T > P": Sizes(steps=48, window=4, max_positions=8),
}
ROUTES = ("some", "one sequence silent", "all silent", "all run")

# Few and tiny, with each value of each setting in company of most values of the others.
RECORDED_SIZES = Sizes(
    width=4, query_width=4, value_width=4, states=2, steps=9, window=2, max_positions=5
)
RECORDED = (
    # bidirectional, score, position, norm, prenorm, training, route
    (False, "softmax", "rotary", "layer", True, False, "some"),
    (False, "softmax", "simple", "batch", False, True, "one sequence silent"),
    (False, "relu2", "local", "batch", True, False, "some"),
    (False, "relu2", "rotary", "layer", False, False, "one sequence silent"),
    (True, "softmax", "local", "layer", False, False, "some"),
    (True, "softmax", "rotary", "batch", True, True, "all run"),
    (True, "relu2", "simple", "layer", True, False, "one sequence silent"),
    (True, "relu2", "local", "batch", False, True, "all silent"),
)


def import_reference(path: Path) -> ModuleType:
    """Import the user's copy."""
    spec = importlib.util.spec_from_file_location("seqboat_reference", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is no Python file: name a copy of standalone_seqboat.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_theirs(reference: ModuleType, case: Case, sizes: Sizes) -> Any:
    """Make their layer, freshly initialised."""
    layer = reference.SeqBoatLayer(
        sizes.width,
        sizes.query_width,
        sizes.value_width,
        sizes.states,
        attention_activation=case.score,
        bidirectional=case.bidirectional,
        window_size=case.window,
        norm_type=f"{case.norm}norm",
        prenorm=case.prenorm,
        rel_pos_bias="rotary" if case.position == "rotary" else "simple",
        max_positions=sizes.max_positions,
        local_pos=case.position == "local",
    )
    return layer.train(case.training)


def make_problem(reference: ModuleType, case: Case, sizes: Sizes, *, seed: int) -> Problem:
    """Draw weights so large that every path matters, and a batch; then set the route.

    In training all steps are valid, as their batch norm counts padded steps and ours does not.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    weights = {}
    for name, start in build_theirs(reference, case, sizes).state_dict().items():
        noise = draw(*start.shape)
        if name.endswith("num_batches_tracked"):
            weights[name] = start.clone()
        elif name.endswith(("running_var", "norm.norm.weight", "temp")) or name == "gamma":
            weights[name] = (1 + 0.3 * noise).abs()
        elif start.dim() == 2 and not name.startswith("ssm"):
            weights[name] = noise / start.shape[1] ** 0.5
        else:
            weights[name] = 0.5 * noise
    shape = (BATCH, sizes.steps, sizes.width)
    lengths = None if case.training else torch.tensor([sizes.steps, sizes.steps * 3 // 4, 1])
    problem = Problem(weights, draw(*shape), lengths, draw(*shape))
    weights["hx_proj.bias"][1] -= _threshold(case, problem)
    return problem


@torch.no_grad()
def _threshold(case: Case, problem: Problem) -> float:
    """Find what the run logit must lose for the route: between two steps, so that none ties."""
    layer = load_ours(case, problem.weights)
    batch, steps, _ = problem.x.shape
    _, decision = layer(problem.x, torch.arange(steps).expand(batch, -1), problem.valid)
    margin = decision.margin[..., 0]
    ordered = problem.keep(margin.unsqueeze(-1)).flatten().sort().values
    if case.route == "all silent":
        return ordered[-1].item() + 1
    if case.route == "all run":
        return ordered[0].item() - 1
    valid = torch.ones_like(margin, dtype=torch.bool) if problem.valid is None else problem.valid
    lowest = margin.where(valid, torch.inf).amin(1)
    highest = margin.where(valid, -torch.inf).amax(1)
    low = highest.amin() if case.route == "one sequence silent" else ordered[len(ordered) * 2 // 5]
    # Where one sequence runs at every step, their code compresses none of the batch.
    low = torch.maximum(low, lowest[valid.all(1)].amax())
    above = ordered[ordered >= low][: max(2, len(ordered) // 5)]
    if case.route == "one sequence silent":
        above = above[:2]
    widest = above.diff().argmax()
    return ((above[widest] + above[widest + 1]) / 2).item()


def run_theirs(reference: ModuleType, case: Case, sizes: Sizes, problem: Problem) -> Results:
    """Run their layer forward and backward; gradients by their names."""
    layer = build_theirs(reference, case, sizes)
    layer.load_state_dict(problem.weights)
    x = problem.x.clone().requires_grad_()
    padding = None if problem.valid is None else ~problem.valid
    y = problem.keep(layer(x.transpose(0, 1), padding).transpose(0, 1))
    (y * problem.keep(problem.seed)).sum().backward()
    gradients: dict[str, Any] = {"x": x.grad}
    for name, weight in layer.named_parameters():
        gradients[name] = torch.zeros_like(weight) if weight.grad is None else weight.grad
    averages = {
        f"norm.{name.rpartition('.')[2]}": buffer.clone()
        for name, buffer in layer.named_buffers()
        if name.startswith("norm.norm.running")
    }
    return Results(y.detach(), gradients, averages)


def compare_case(reference: ModuleType, case: Case, sizes: Sizes, *, seed: int) -> Parity:
    """Differences of one case."""
    problem = make_problem(reference, case, sizes, seed=seed)
    theirs = run_theirs(reference, case, sizes, problem)
    weights = {name: g for name, g in theirs.gradients.items() if name != "x"}
    ours = translate(weights, load_ours(case, problem.weights).config)
    theirs = replace(theirs, gradients={"x": theirs.gradients["x"]} | ours)
    return difference(run_ours(case, problem), theirs)


def settings() -> Iterator[tuple[Case, str]]:
    """Every combination of settings and lengths; route and mode are for the caller to vary."""
    grid = itertools.product(
        (False, True),
        ("softmax", "relu2"),
        ("rotary", "simple", "local"),
        ("layer", "batch"),
        (True, False),
        SIZES,
    )
    for bidirectional, score, position, norm, prenorm, lengths in grid:
        yield (
            Case(
                bidirectional=bidirectional,
                score=score,
                position=position,
                norm=norm,
                prenorm=prenorm,
                window=SIZES[lengths].window,
                training=False,
                route="some",
            ),
            lengths,
        )


def print_table(reference: ModuleType) -> bool:
    """Print the worst of each combination over routes and modes; whether all are in tolerance."""
    output = TOLERANCES["published layer, output"].relative
    gradient = TOLERANCES["published layer, gradient"].relative
    print("| direction | score | positions | norm | place | lengths | output | gradient |")
    print("|---|---|---|---|---|---|---|---|")
    overall, cases, failed = Parity(0.0, 0.0), 0, 0
    for seed, (case, lengths) in enumerate(settings()):
        worst = Parity(0.0, 0.0)
        for route, training in itertools.product(ROUTES, (False, True)):
            variant = replace(case, route=route, training=training)
            worst = worst.worse(compare_case(reference, variant, SIZES[lengths], seed=seed))
            cases += 1
        overall = overall.worse(worst)
        out = worst.output > output or worst.gradient > gradient
        failed += out
        words = case.name.split(", ")[:5]
        print(
            f"| {' | '.join(words)} | {lengths} | {worst.output:.1e} | {worst.gradient:.1e} |"
            f"{' out of tolerance' if out else ''}"
        )
    print(f"\n{cases} cases, torch {torch.__version__}, float32: worst output {overall.output:.1e}")
    print(f"(allowed {output:.0e}), worst gradient {overall.gradient:.1e} (allowed {gradient:.0e})")
    return not failed


def telling_problem(
    reference: ModuleType, case: Case, sizes: Sizes, *, seed: int
) -> tuple[Problem, Results]:
    """Draw until every weight matters: one without a gradient would go unchecked."""
    while True:
        problem = make_problem(reference, case, sizes, seed=seed)
        theirs = run_theirs(reference, case, sizes, problem)
        if case.route == "all silent" or all(g.any() for g in theirs.gradients.values()):
            return problem, theirs
        seed += 1


def record(reference: ModuleType, path: Path) -> None:
    """Write the small cases, computed by their layer alone."""
    cases, tensors = [], {}
    names = ("bidirectional", "score", "position", "norm", "prenorm", "training", "route")
    for i, values in enumerate(RECORDED):
        fields: dict[str, Any] = dict(zip(names, values, strict=True))
        case = Case(window=RECORDED_SIZES.window, **fields)
        problem, theirs = telling_problem(reference, case, RECORDED_SIZES, seed=i)
        found = {"x": problem.x, "seed": problem.seed, "output": theirs.output}
        if problem.lengths is not None:
            found["lengths"] = problem.lengths
        for group, members in (
            ("weights", problem.weights),
            ("gradients", theirs.gradients),
            ("averages", theirs.averages),
        ):
            found |= {f"{group}.{name}": tensor for name, tensor in members.items()}
        tensors |= {f"{i}.{name}": tensor.contiguous() for name, tensor in found.items()}
        cases.append(asdict(case))
    save_file(tensors, path, metadata={"cases": json.dumps(cases)})
    print(f"{len(cases)} cases in {path}, {path.stat().st_size} bytes")


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--reference", type=Path, required=True, help="your standalone_seqboat.py")
    parser.add_argument("--record", type=Path, help="write the tests' cases to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    reference = import_reference(arguments.reference)
    if arguments.record is not None:
        record(reference, arguments.record)
        return 0
    return 0 if print_table(reference) else 1


if __name__ == "__main__":
    sys.exit(main())
