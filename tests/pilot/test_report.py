"""The report: what it says, that nothing from a log gets out of hand on it, what it refuses."""

import json
import math
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.pilot.fabricated_run import CHANNELS, ENTITIES, make_run, read_result

from sma_pilot.errors import RunError
from sma_pilot.judge.alarms import Threshold
from sma_pilot.report.evidence import Evidence
from sma_pilot.report.page import draw, write_report
from sma_pilot.report.stretches import choose_stretches
from sma_pilot.report.svg import LIGHT, inline_svg, new_figure, printable, styled
from sma_pilot.report.text import verdict_text
from sma_pilot.report.words import format_value, in_sentence, kpi_label
from sma_pilot.run_folder import RunFolder

KINDS = ("go", "no-go", "inconclusive")
# Where a browser might go and fetch, or run, something.
LOADING_TAGS = {"script", "img", "image", "iframe", "object", "embed", "link", "base", "form", "a"}


class Page(HTMLParser):
    """A page taken apart: its tags, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag != "meta":
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    root = tmp_path_factory.mktemp("runs")
    # The first is large: 108,000 judged rows.
    return {
        kind: make_run(root / kind, kind=kind, days=50 if kind == "go" else 16) for kind in KINDS
    }


@pytest.fixture(scope="module")
def pages(runs: dict[str, RunFolder]) -> dict[str, Page]:
    return {
        kind: Page(write_report(run.path).read_text(encoding="utf-8")) for kind, run in runs.items()
    }


@pytest.fixture(scope="module")
def evidence(runs: dict[str, RunFolder]) -> Evidence:
    return Evidence.read(runs["inconclusive"].path)


@pytest.mark.parametrize("kind", KINDS)
def test_the_verdict_and_every_reason_are_on_the_page(
    kind: str, runs: dict[str, RunFolder], pages: dict[str, Page]
) -> None:
    result, page = read_result(runs[kind]), pages[kind]
    assert result.verdict == kind
    word = {"go": "✓ Go", "no-go": "✕ No-go", "inconclusive": "? Inconclusive"}[kind]
    assert word in page.text
    for reason in result.reasons:
        assert reason.text in page.text
    assert (result.more_data is not None) == ("How much more data" in page.text)
    assert result.plan["digest"] in page.text


def test_every_gate_shows_value_limit_and_a_status_in_words(
    runs: dict[str, RunFolder], pages: dict[str, Page]
) -> None:
    gates = [kpi for kpi in read_result(runs["no-go"]).kpis if kpi.is_gate]
    table = pages["no-go"].html.split('<table class="gates">')[1].split("</table>")[0]
    rows = [re.sub(r"<[^>]*>", " ", row) for row in table.split("<tr>")[2:]]
    assert len(rows) == len(gates) >= 4
    for gate, row in zip(gates, rows, strict=True):
        assert kpi_label(gate) in row
        assert format_value(gate.value, gate.unit) in row
        assert {"pass": "✓ passes", "fail": "✕ fails"}[gate.status] in row


def test_sections_come_in_the_order_of_a_decision(pages: dict[str, Page]) -> None:
    titles = re.findall(r"<h2>(.*?)</h2>", pages["go"].html)
    assert titles == [
        "Limits of the plan",
        "Quality",
        "Latency",
        "Money",
        "When each part of the candidate ran",
        "What was not measured",
        "All figures",
        "Data and provenance",
        "Decision",
    ]


def test_money_stands_in_three_cases_on_two_bases_with_its_sources(pages: dict[str, Page]) -> None:
    html = pages["go"].html.split("<h2>Money</h2>")[1].split("<h2>")[0]
    rows = {
        re.sub(r"<.*?>", "", row.split("</th>")[0]): re.findall(r"<td.*?>(.*?)</td>", row)
        for row in html.split("<tr>")
    }
    payback = rows["Set-up is paid back in"]
    assert [cell.endswith(" years") for cell in payback] == [True] * 3 + [False] * 3
    assert payback[3:] == ["never"] * 3
    assert rows["Net present value"] == ["not measured"] * 6  # the plan has no horizon
    assert rows["Set-up, once"] == ["40 EUR", "offer of &lt;i&gt;spring&lt;/i&gt;"]
    assert rows["Horizon and discount rate"] == ["not in the plan", ""]


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_loads_and_runs_nothing(kind: str, pages: dict[str, Page]) -> None:
    page = pages[kind]
    assert not LOADING_TAGS & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert not page.values("src")
    assert all(value.startswith("#") for value in page.values("xlink:href"))
    assert all(m.startswith("#") for m in re.findall(r"url\(([^)]*)\)", page.html))
    assert "@import" not in page.html
    assert len(page.html.encode()) < 3_000_000


def test_names_from_the_log_are_text_even_within_drawings(pages: dict[str, Page]) -> None:
    page = pages["no-go"]
    drawings = re.findall(r"<svg.*?</svg>", page.html, flags=re.DOTALL)
    inside = "".join(drawings)
    assert "&lt;img src=x" in inside
    assert "$\\frac" in page.text
    assert ENTITIES[0] in page.text
    assert ENTITIES[2] in page.text
    assert "Presses of hall 3 <b>spring</b>" in page.text
    assert "b" not in page.tags or page.tags["b"] == 3, "only the three choices are in bold"
    assert CHANNELS[0][:10] in page.text


def test_drawings_are_described_and_share_no_id(pages: dict[str, Page]) -> None:
    page = pages["inconclusive"]
    drawings = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "role")]
    labels = [v for tag, name, v in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(drawings) == len(labels) == 7
    assert all(len(label) > 40 for label in labels)
    ids = Counter(page.values("id"))
    assert ids.most_common(1)[0][1] == 1
    references = page.values("xlink:href") + re.findall(r"url\((#[^)]*)\)", page.html)
    assert {reference.removeprefix("#") for reference in references} <= set(ids)


def test_one_drawing_serves_light_and_dark() -> None:
    with styled():
        figure = new_figure(2, 1)
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=LIGHT["candidate"])
        axes.set_title('"><script>#0a6c96')
    svg = inline_svg(figure, "one", 'a "quoted" <alt>')
    assert "stroke: var(--candidate)" in svg
    assert "<style" not in svg
    assert "#0a6c96</text>" in svg, "a name that looks like a colour stays a name"
    assert "<script" not in svg
    assert 'aria-label="a &#34;quoted&#34; &lt;alt&gt;"' in svg
    assert 'id="one-figure_1"' in svg


def test_stretches_are_what_their_titles_say(evidence: Evidence) -> None:
    rows, quality = evidence.scene.rows, evidence.quality["candidate"]
    assert quality.threshold is not None
    assert quality.caught is not None
    stretches = {stretch.name: stretch for stretch in choose_stretches(evidence)}
    assert set(stretches) == {"caught", "missed", "quiet"}
    for stretch in stretches.values():
        assert np.unique(rows.entity[stretch.start : stretch.stop]).size == 1
        assert 2 <= stretch.stop - stretch.start <= 480
    quiet = slice(stretches["quiet"].start, stretches["quiet"].stop)
    assert not (rows.label[quiet] > 0).any()
    assert not (rows.scores["candidate"][quiet] > quality.threshold.value).any()
    for name, wanted in (("caught", True), ("missed", False)):
        start, stop = stretches[name].start, stretches[name].stop
        shown = (evidence.scene.events.start >= start) & (evidence.scene.events.stop <= stop)
        assert wanted in quality.caught[shown]


def test_the_trade_off_agrees_with_the_judge(evidence: Evidence) -> None:
    alarms, recall = evidence.trade_off("candidate")
    assert (np.diff(recall) >= 0).all()
    score = evidence.scene.rows.scores["candidate"]
    normal = evidence.scene.kinds == 0
    own = evidence.threshold("candidate")
    assert own is not None
    deepest = max(0.1, (score[normal] > own).mean())
    shares = np.geomspace(1 / normal.sum(), deepest, recall.size - 1)
    levels = np.sort([*np.quantile(score[normal], 1 - shares), own])[::-1]
    for point in (0, recall.size // 2, int(np.flatnonzero(levels == own)[0]), recall.size - 1):
        threshold = Threshold(value=float(levels[point]), false_alarms=0, entity_days=1.0)
        judged = evidence.scene.score("candidate", threshold)
        assert judged.values["event_recall"] == pytest.approx(recall[point])
        assert judged.false_alarms_per_day == pytest.approx(alarms[point])


def test_routing_rates_are_those_of_the_log(evidence: Evidence) -> None:
    log = pl.read_parquet(evidence.run.replay / "routing" / "*.parquet")
    scores = pl.read_parquet(evidence.run.replay / "scores" / "part-candidate-00000.parquet")
    events = scores.filter((pl.col("slice") == "judged") & (pl.col("label") > 0))
    keys = set(zip(events["entity"].to_list(), events["time"].to_list(), strict=True))
    inside = np.array(
        [key in keys for key in zip(log["entity"].to_list(), log["time"].to_list(), strict=True)]
    )
    rates = evidence.routing_rates()
    assert [name for name, _, _ in rates] == [
        f"layer {layer} {name}" for layer in (0, 1) for name in ("gated_attention", "swiglu")
    ]
    for name, always, during in rates:
        layer, submodule = int(name[6]), name[8:]
        own = ((log["layer"] == layer) & (log["submodule"] == submodule)).to_numpy()
        assert always == pytest.approx(log["active"].to_numpy()[own].mean())
        assert during == pytest.approx(log["active"].to_numpy()[own & inside].mean())
        assert during is not None
        assert during > always


def test_routing_of_a_stretch_is_cut_at_its_borders(evidence: Evidence) -> None:
    time = evidence.scene.rows.time[evidence.scene.rows.entity == 1]
    cut = evidence.routing(ENTITIES[1], int(time[10]), int(time[19]))
    assert cut["time"].unique().sort().to_list() == time[10:20].tolist()
    assert cut.height == 10 * 4


def test_a_log_without_labels_or_routes_still_gets_its_page(tmp_path: Path) -> None:
    run = make_run(tmp_path, labelled=False, routes=False, days=6, money=None)
    page = Page(write_report(run.path, tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "? Inconclusive" in page.text
    assert "no labelled event" in page.text
    assert "The candidate logged no routing decisions" in page.text
    assert "no event is labelled in the judged rows" in page.text
    assert "The plan gives no prices." in page.text
    unmeasured = page.text.split("What was not measured")[1].split("All figures")[0]
    assert "Cost: a year, offline (incumbent, candidate, simple baseline)" in unmeasured


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: run.result.unlink(), "no result.json yet"),
        (lambda run: run.result.write_text("{"), "cannot be read"),
        (lambda run: run.result.write_text('{"format": "other"}'), "not a result"),
        (
            lambda run: run.result.write_text(
                run.result.read_text().replace(read_result(run).plan["digest"], "0" * 64)
            ),
            "judged by another plan",
        ),
        (lambda run: (run.replay / "replay.json").unlink(), "not a finished replay"),
        (lambda run: (run.dataset / "dataset.json").unlink(), "no prepared data set"),
        (lambda run: run.plan.unlink(), "not a run folder"),
    ],
)
def test_a_run_that_is_not_whole_is_refused(tmp_path: Path, spoil, message: str) -> None:
    run = make_run(tmp_path, days=6)
    spoil(run)
    with pytest.raises(RunError, match=message):
        write_report(run.path)
    assert not run.report.exists()


def test_an_unwritable_place_is_named(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nowhere.*cannot write the report"):
        write_report(runs["no-go"].path, tmp_path / "nowhere" / "page.html")


def test_drawings_are_images_too(evidence: Evidence) -> None:
    drawing = draw(evidence)["latency"]
    assert drawing.png().startswith(b"\x89PNG")


def test_the_terminal_text_has_verdict_reasons_and_gates(runs: dict[str, RunFolder]) -> None:
    result = read_result(runs["no-go"])
    text = verdict_text(result)
    assert text.startswith("verdict: NO-GO")
    assert text.index("✕ Event recall") < text.index("✓ Latency p95"), "what fails comes first"
    for kpi in result.kpis:
        assert not kpi.is_gate or kpi_label(kpi) in text
    assert all(len(line) < 400 for line in text.splitlines())


@pytest.mark.parametrize(
    ("value", "unit", "written"),
    [
        (0.42534, "ratio", "0.425×"),
        (12.0, "ratio", "12.0×"),
        (216_000, "bytes", "216 kB"),
        (1_234_567_890, "bytes", "1.23 GB"),
        (0.0612, "", "0.061"),
        (-0.0612, "", "−0.061"),
        (3e-7, "", "3.0e−07"),
        (0.50914, "ms", "0.509 ms"),
        (1_234.5, "EUR/year", "1,234 EUR/year"),
        (1_234, "rows", "1,234 rows"),
        (90.0, "s", "90 s"),
        (5_400.0, "s", "90 min"),
        (172_800.0, "s", "2 d"),
        (0, "ratio", "0×"),
        (None, "ms", "not measured"),
        (math.nan, "ms", "not measured"),
    ],
)
def test_values_are_written_for_people(value: float | None, unit: str, written: str) -> None:
    if written == "2 d":
        written = "48 h" if value is not None and value < 2 * 86_400 else "2 d"
    assert format_value(value, unit) == written


@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["", "ratio", "bytes", "s", "ms", "rows", "EUR/year"]),
)
def test_no_number_is_too_odd_to_be_written(value: float, unit: str) -> None:
    text = format_value(value, unit)
    assert text
    assert "-" not in text


@given(st.text())
def test_printable_text_has_one_line_and_one_direction(text: str) -> None:
    shown = printable(text)
    assert len(shown) <= 60
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
    shown.encode("utf-8")


def test_result_and_page_agree_after_a_second_writing(runs: dict[str, RunFolder]) -> None:
    run = runs["no-go"]
    once = write_report(run.path).read_bytes()
    assert write_report(run.path).read_bytes() == once
    assert json.loads(run.result.read_text())["verdict"] == "no-go"


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("Event recall", "event recall"),
        ("VUS-PR", "VUS-PR"),
        ("", ""),
        ("A", "a"),
        ("A year", "a year"),
    ],
)
def test_labels_begin_in_lower_case_within_a_sentence(label: str, expected: str) -> None:
    assert in_sentence(label) == expected
