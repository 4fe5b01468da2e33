"""The result's JSON form: what is written is read back, and nothing else is read."""

import copy
import json

import pytest

from sma_pilot.errors import RunError
from sma_pilot.judge.result import Kpi, MoreData, Reason, Result

RESULT = Result(
    verdict="inconclusive",
    reasons=(Reason(kpi="quality/loss_event_recall", status="inconclusive", text="Too few."),),
    kpis=(
        Kpi(
            name="quality/loss_event_recall",
            value=0.02,
            unit="",
            interval=(-0.01, 0.06),
            confidence=0.95,
            threshold=0.05,
            direction="lower",
            status="inconclusive",
            note="A note.",
        ),
        Kpi(name="memory/peak", value=None, unit="bytes", arm="candidate", status="not_measured"),
    ),
    plan={"name": "case", "digest": "abc"},
    more_data=MoreData(
        text="About 480.", events=480, further_events=360, days=25.0, further_days=18.75
    ),
    dataset={"rows": 7},
    environment={"cpu": {"cores": 2}},
    noise={"latency_ratio_p95": 1.01, "score_rows_different": None},
)


def test_a_result_survives_its_json_form():
    document = json.loads(json.dumps(RESULT.to_dict(), allow_nan=False))
    assert Result.from_dict(document) == RESULT
    assert (document["format"], document["version"]) == ("sma.result", 1)


def test_a_figure_that_is_not_finite_is_null():
    kpi = Kpi(name="a/b", value=float("inf"), unit="", interval=(0.0, float("nan")))
    document = kpi.to_dict()
    assert (document["value"], document["interval"]) == (None, None)


def test_kpis_are_found_by_name():
    assert RESULT.kpi("memory/peak").arm == "candidate"
    with pytest.raises(KeyError):
        RESULT.kpi("memory/valley")


DELETE = object()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format"], "sma.replay", "result: not a result"),
        (["version"], 2, r"result.version: this program reads version 1, the file has 2"),
        (["noise"], DELETE, "result: missing field 'noise'"),
        (["extra"], 1, "result: unknown field 'extra'"),
        (["verdict"], "maybe", r"result.verdict: need one of \['go', 'no-go', 'inconclusive'\]"),
        (["kpis"], {}, "result.kpis: need a list"),
        (["kpis", 1, "status"], "ok", r"result.kpis\[1\].status"),
        (["kpis", 0, "value"], "0.02", r"result.kpis\[0\].value: need a finite number"),
        (["kpis", 0, "value"], True, r"result.kpis\[0\].value: need a finite number"),
        (["kpis", 0, "interval"], [0.1], r"result.kpis\[0\].interval: need null or two numbers"),
        (["kpis", 0, "interval"], [0.1, None], r"result.kpis\[0\].interval"),
        (["kpis", 0, "direction"], "up", r"result.kpis\[0\].direction"),
        (["kpis", 0, "note"], None, r"result.kpis\[0\].note: need text"),
        (["reasons", 0], "Too few.", r"result.reasons\[0\]: need an object"),
        (["reasons", 0, "text"], DELETE, r"result.reasons\[0\]: missing field 'text'"),
        (["more_data", "events"], 4.5, "result.more_data.events: need null or a whole number"),
        (["more_data", "power"], None, "result.more_data.power: need a finite number"),
        (["plan", "digest"], 5, "result.plan.digest: need text"),
        (["noise", "latency_ratio_p95"], "1", "result.noise.latency_ratio_p95"),
        (["environment"], None, "result.environment: need an object"),
    ],
)
def test_a_document_that_is_wrong_is_refused_by_name(path, value, message):
    document = copy.deepcopy(RESULT.to_dict())
    *way, last = path
    place = document
    for step in way:
        place = place[step]
    if value is DELETE:
        del place[last]
    else:
        place[last] = value
    with pytest.raises(RunError, match=message):
        Result.from_dict(document)


@pytest.mark.parametrize("document", [None, [], "x", {}])
def test_what_is_no_result_at_all_is_refused(document):
    with pytest.raises(RunError, match="not a result"):
        Result.from_dict(document)
