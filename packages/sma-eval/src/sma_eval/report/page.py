"""The report of a study: one HTML page that loads nothing else, to be read, mailed and kept."""

from collections.abc import Sequence
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sma_eval.analysis import Estimate, summarize
from sma_eval.conclusion import conclude
from sma_eval.effects import Difference
from sma_eval.findings import Findings, find
from sma_eval.naming import with_short_names
from sma_eval.records import TrialRecord
from sma_eval.report.cost_plots import fronts_plot, rates_plot
from sma_eval.report.drawing import Drawing
from sma_eval.report.plots import arms_plot, effects_plot, interaction_plot
from sma_eval.report.tables import legend, table_cells
from sma_eval.search_report import describe_search
from sma_eval.study import Study


def render(
    study: Study,
    records: Sequence[TrialRecord],
    *,
    dataset_digest: str,
    active: bool,
) -> str:
    """Return the page as HTML; whatever a study says is escaped.

    Parameters
    ----------
    study
        The study.
    records
        Of every trial, whatever its status.
    dataset_digest
        Of the data that trials read.
    active
        Whether the study still runs.
    """
    short, labels = with_short_names(records)
    found = find(short, study.objective)
    rows = summarize(short, study.objective)
    header, *cells = table_cells(rows, study)
    environment = Environment(
        loader=PackageLoader("sma_eval", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sheet = resources.files("sma_eval.report").joinpath("style.css").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(
        style=Markup(sheet),  # noqa: S704 - the package's own
        study=study,
        task=", ".join(f"{k} {v}" for k, v in study.task.model_dump(mode="json").items()),
        budget=", ".join(f"{k} {v}" for k, v in study.training.items()),
        dataset_digest=dataset_digest,
        state=_state(records, study),
        active=active,
        complete=len(records) == study.trials and all(record.ended for record in records),
        conclusion=[*describe_search(short, study), *conclude(found, study.objective)],
        header=header,
        cells=cells,
        legend=legend(rows, study).splitlines(),
        labels=labels,
        drawings=_draw(short, study, found),
        comparisons=_comparisons(found),
        seeds=[] if found.noise is None else list(found.noise.arms.items()),
        trials=[
            (record.trial.label, record.status, record.step, record.reason or "")
            for record in short
        ],
    )


def _draw(records: Sequence[TrialRecord], study: Study, found: Findings) -> list[Drawing]:
    """Return the drawings in the page's order; those without data left out."""
    rows = summarize(records, study.objective)
    drawings = [
        arms_plot(records, study.objective),
        effects_plot(found, study.objective),
        interaction_plot(records, study.objective),
        rates_plot(found),
        fronts_plot(rows, records, found, study.objective),
    ]
    return [drawing for drawing in drawings if drawing is not None]


def _state(records: Sequence[TrialRecord], study: Study) -> str:
    """Count the trials by what became of them; those that a search has yet to ask for wait, too."""
    statuses = [record.status for record in records]
    statuses += ["pending"] * (study.trials - len(records))
    counts = {status: statuses.count(status) for status in sorted(set(statuses))}
    parts = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in counts.items())
    return f"{len(statuses)} trials: {parts}"


def _comparisons(found: Findings) -> list[tuple[str, list[dict[str, str]]]]:
    """List every comparison as text, by family."""
    families = {
        "Policies": found.policies,
        "Pools": found.pools,
        "Policy and pool together": found.interactions,
        f"Every other arm against the best on validation, {found.best}": found.rivals,
    }
    return [(name, [_row(d) for d in own]) for name, own in families.items() if own]


def _row(difference: Difference) -> dict[str, str]:
    return {
        "what": difference.what,
        "against": difference.against,
        "difference": f"{difference.estimate.mean:+.4f}",
        "interval": _ends(difference.estimate),
        "seeds": str(difference.seeds),
        "p": _probability(difference.p_value),
        "adjusted": _probability(difference.adjusted_p),
        "verdict": difference.verdict,
    }


def _ends(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return "-"
    return f"{estimate.low:+.4f} to {estimate.high:+.4f}"


def _probability(value: float | None) -> str:
    if value is None:
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
