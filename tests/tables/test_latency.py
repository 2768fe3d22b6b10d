import json
from pathlib import Path

import pytest

from snapgen_pl.tables.latency import LatencyRow, latency
from snapgen_pl.tables.published import LATENCIES
from snapgen_pl.tables.table import table


@pytest.fixture(scope="module")
def rows() -> list[LatencyRow]:
    return latency()


def test_its_networks_are_those_whose_latency_is_published(rows: list[LatencyRow]) -> None:
    assert [row.component for row in rows] == [each.component for each in LATENCIES]
    assert [row.milliseconds_published for row in rows] == [274, 119, 4, 23]
    assert [row.params_m for row in rows] == pytest.approx([379.51, 1.3834, 123.06, 694.66], abs=0.005)
    # By hand, of a CLIP's layers: 12 C^2 a token, and the two products of attention; CLIP-G projects one token.
    for row, layers, width, projected in ((rows[2], 12, 768, 0), (rows[3], 32, 1280, 1280**2)):
        macs = layers * (77 * 12 * width**2 + 2 * 77**2 * width) + projected
        assert row.gmacs == pytest.approx(macs / 1e9, abs=0.006)
        weights = 2 * 12 * layers * width**2 / 1e6
        assert weights < row.megabytes < 1.4 * weights


def test_errors_are_of_the_estimates(rows: list[LatencyRow]) -> None:
    for row in rows:
        assert row.error_estimate == pytest.approx(
            100 * (row.milliseconds_estimate / row.milliseconds_published - 1), abs=0.3
        )
        assert row.left_out_error_estimate == pytest.approx(
            100 * (row.left_out_estimate / row.milliseconds_published - 1), abs=0.3
        )


def test_every_estimate_is_called_one(rows: list[LatencyRow]) -> None:
    printed = json.loads(table("latency", "json"))
    assert printed == [row._asdict() for row in rows]
    assert list(printed[0]) == [
        "component",
        "params_m",
        "params_m_published",
        "gmacs",
        "megabytes",
        "milliseconds_estimate",
        "milliseconds_published",
        "error_estimate",
        "left_out_estimate",
        "left_out_error_estimate",
        "tmacs_per_s_estimate",
        "gb_per_s_estimate",
    ]
    text = table("latency", "md")
    assert text.count("ESTIMATE ms") == 2
    assert "\n\nESTIMATES: nothing was timed on a phone" in text


def test_reports_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no place for reports"):
        table("latency", "md", tmp_path)
