import json
from dataclasses import replace
from pathlib import Path

import pytest

from snapgen_pl.metrics.sample_metric import Score
from snapgen_pl.metrics.sample_report import SampleReport, check_comparable, read_report

REPORT = SampleReport(
    model="small",
    values={"fid@20": Score(3.5), "is@20": Score(7.0, 0.5)},
    controls={"real": {"fid@20": Score(1.0)}},
    measurement={"samples": 20, "metrics": {"inception": {"weights": "abc", "neighbours": 3}}},
    drawing={"sampler": "Euler(steps=2)", "guidance": "Guidance(scale=1.0)", "seed": 0},
    weights={"sha256": "def"},
    seconds=1.5,
    made={"date": "2026-11-26"},
)


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    REPORT.write(tmp_path / "reports" / "a.json")
    assert read_report(tmp_path / "reports" / "a.json") == REPORT


def test_what_is_no_report_is_refused_by_name(tmp_path: Path) -> None:
    for content in ("{", "[]", "{}", '{"values": {"fid": 3}}'):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(ValueError, match=r"a\.json is no report"):
            read_report(tmp_path / "a.json")
    with pytest.raises(ValueError, match=r"b\.json is no report"):
        read_report(tmp_path / "b.json")
    for key, value in (
        ("values", {"fid": {"value": "3"}}),
        ("controls", {"real": {"fid": {"value": None}}}),
        ("made", 3),
    ):
        (tmp_path / "a.json").write_text(json.dumps(REPORT.content() | {key: value}))
        with pytest.raises(ValueError, match=r"a\.json is no report"):
            read_report(tmp_path / "a.json")


def test_reports_of_different_protocol_do_not_stand_in_one_column() -> None:
    network = {"weights": "abc", "neighbours": 5}
    other = replace(REPORT, measurement={"samples": 20, "metrics": {"inception": network}}, drawing={"seed": 1})
    with pytest.raises(ValueError, match=r"a and b were measured .* differ in metrics.inception.neighbours \(3 / 5\)"):
        check_comparable({"a": REPORT, "b": other})
    drawn = replace(REPORT, drawing={"sampler": "Euler(steps=9)", "seed": 1})
    check_comparable({"a": REPORT, "b": drawn})
    with pytest.raises(ValueError, match="differ in sampler"):
        check_comparable({"a": REPORT, "b": drawn}, also=("sampler",))
