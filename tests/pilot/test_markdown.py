"""The verdict as Markdown: text of a log stays text, and it fits where it must go."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.pilot.fabricated_run import make_run, read_result

from sma_pilot.judge.result import Reason, Result
from sma_pilot.report.markdown import escape_markdown, verdict_markdown

HOSTILE = (
    "<img src=x onerror=alert(1)>\n\n| a | b |\n|---|---|\n# **big** [x](javascript:y) `c` ![i](u)"
)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    root: Path = tmp_path_factory.mktemp("run")
    return read_result(make_run(root, kind="inconclusive", days=8))


def test_text_of_a_log_stays_text(result: Result) -> None:
    reason = Reason(kpi="x", status="fail", text=HOSTILE)
    text = verdict_markdown(replace(result, reasons=(reason,)), 8000)
    (line,) = [line for line in text.split("\n") if line.startswith("- ✕")]
    assert not set("<>|`[]*") & set(line)
    assert "onerror" in line
    assert "javascript" in line


def test_every_row_of_a_table_has_its_cells(result: Result) -> None:
    kpis = tuple(replace(kpi, unit="a|b") for kpi in result.kpis)
    text = verdict_markdown(replace(result, kpis=kpis), 20_000)
    tables = [part.split("\n") for part in text.split("\n\n") if part.startswith("| ")]
    assert len(tables) == 2
    for rows in tables:
        assert len({row.count("|") for row in rows}) == 1


@given(st.text())
def test_escaped_text_is_one_line_without_markup(text: str) -> None:
    escaped = escape_markdown(text)
    assert len(escaped.splitlines()) <= 1
    assert not set("<>|`[]*_~\\\"'@$") & set(escaped)
    assert "://" not in escaped
    assert "www." not in escaped.lower()


def test_a_description_never_outgrows_the_tag(result: Result) -> None:
    for length in (100, 1500, 8000):
        assert len(verdict_markdown(result, length)) <= length
    many = replace(result, reasons=result.reasons * 40)
    assert "| figure&ensp; |" in verdict_markdown(many, 8000), (
        "one long part must not cost the others"
    )
