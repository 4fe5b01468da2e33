"""The course of a pilot in stages: take one look after the other, as far as it may go."""

from datetime import UTC, datetime

from sma_core.dataset import PreparedDataset
from sma_pilot.decision.verification import verify
from sma_pilot.errors import RunError
from sma_pilot.judge.verdict import judge
from sma_pilot.progress import OnProgress
from sma_pilot.replay.measurements_io import load_measurements
from sma_pilot.replay.runner import replay
from sma_pilot.replay.sharding import Sharding
from sma_pilot.run_folder import RunFolder, write_json
from sma_pilot.stages.look import CARD, Look, levels
from sma_pilot.stages.standing import Standing
from sma_pilot.stages.windows import window_of


def take_look(
    now: Standing,
    dataset: PreparedDataset,
    run: RunFolder,
    on_progress: OnProgress,
    sharding: Sharding | None = None,
) -> Look:
    """Take the look that comes next: replay its rows, judge all of its stage, leave its card.

    Parameters
    ----------
    now : Standing
        How the pilot stands; it has a next look.
    dataset : PreparedDataset
    run : RunFolder
        The pilot's own.
    on_progress : OnProgress
    sharding : Sharding, optional
        See `replay`.

    Raises
    ------
    RunError
        When the stage before was changed after it was signed, the look has no row, or the folder
        holds a replay of something else.
    PlanError
        When the plan's stages do not fit the log.
    """
    if now.next is None:
        raise RunError(f"{run.path}: no look comes next: {now.text(str(run.path))}")
    current, number = now.next
    stage, plan = current.stage, now.plan
    if number == 1:
        _check_before(now, run, on_progress)
    folder = run.at(stage.name)
    window = window_of(plan, stage, number, dataset.card)
    alpha = levels(stage, plan)[number - 1]
    read = plan.reading(stage, alpha)
    replay(
        read,
        dataset,
        run.models,
        folder.look(number),
        on_progress,
        window=window,
        sharding=sharding,
    )
    on_progress("judge", 0, None)
    measured = load_measurements(*(folder.look(past + 1) for past in range(number)))
    result = judge(measured, read)
    write_json(folder.look(number) / "result.json", result.to_dict())
    look = Look.of(
        result,
        (window.since_ns, window.until_ns),
        alpha=alpha,
        stage=stage.name,
        number=number,
        at=datetime.now(UTC),
    )
    write_json(folder.look(number) / CARD, look.to_dict())
    return look


def _check_before(now: Standing, run: RunFolder, on_progress: OnProgress) -> None:
    """Check that the signed stage before the current one is still what was signed."""
    place = now.stages.index(now.current)
    if place == 0 or now.stages[place - 1].decision is None:
        return
    before = now.stages[place - 1].stage.name
    if not verify(run.at(before), on_progress=on_progress).is_intact:
        raise RunError(
            f"{run.at(before).path}: changed since it was signed, so the next stage does not "
            f"start; `sma-pilot verify {run.path} --stage {before}` lists what was"
        )
