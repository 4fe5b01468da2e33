"""Runs of the looks after a go, beside that of their pilot."""

import math
from collections.abc import Mapping, Sequence

from sma_pilot.mlflow_runs import MOST_TAG, NOTE_TAG, PARENT_TAG, RunWriter
from sma_pilot.monitor.look import CARD, MonitorLook
from sma_pilot.report.entries import ARM_TAG, LOOK_TAG, STAGE_TAG
from sma_pilot.report.monitor_entries import look_entries, look_markdown
from sma_pilot.report.monitor_plot import trend_plots
from sma_pilot.run_folder import RunFolder


class LooksRecorder(RunWriter):
    """Writes the looks after a go, each as a child of its pilot's run."""

    def __init__(self, run: RunFolder, store: str) -> None:
        super().__init__(run.load_plan(), store)
        self._folder = run

    def _key(self, tags: Mapping[str, str]) -> str | None:
        """Know every run of the plan: looks by their number, the pilot's own by no name at all."""
        names = (tags.get(STAGE_TAG), tags.get(ARM_TAG))
        return tags[LOOK_TAG] if LOOK_TAG in tags else "/".join(filter(None, names))

    def record(self, looks: Sequence[MonitorLook]) -> list[str]:
        """Write all looks of the run, the first one first; return the ids of their runs."""
        replaced = {look.replaces: look.number for look in looks if look.replaces is not None}
        pilot = self._runs.get("")
        ids = []
        for look in looks:
            before = [
                own
                for own in looks[: look.number - 1]
                if not replaced.get(own.number, math.inf) <= look.number
            ]
            entries = look_entries(look, before, self._plan, replaced.get(look.number))
            run = self._run(
                str(look.number), f"look {look.number} {self._plan.digest[:8]}", entries
            )
            ids.append(run.info.run_id)
            if run.info.status == "FINISHED" and entries.tags.items() <= run.data.tags.items():
                continue
            with self._open(run):
                self._log(run, entries)
                standing = sorted((*before, look), key=lambda own: own.since_ns)
                drawings = {own.name: own for own in trend_plots(standing, self._plan)}
                files = [self._folder.monitor / look.folder_name / CARD]
                if look is looks[-1]:
                    files.append(self._folder.monitor_page)
                self._log_files_and_plots(run, files, drawings)
                note = look_markdown(look, MOST_TAG)
                self._client.set_tag(run.info.run_id, NOTE_TAG, note)
                if pilot is not None:
                    self._client.set_tag(run.info.run_id, PARENT_TAG, pilot.info.run_id)
        self._is_watched = True
        arms = {
            name
            for own in self._runs.values()
            if ARM_TAG in own.data.tags
            for name in own.data.metrics
        }
        gates = () if pilot is None else pilot.data.metrics
        self._describe_experiment(gates, arms, looks=bool(self._plan.stages))
        return ids
