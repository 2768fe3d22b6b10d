import json

import pytest

from snapgen_pl.tables.table import table


@pytest.fixture(scope="module")
def rows() -> list[dict[str, float]]:
    return json.loads(table("ablation", "json"))


def test_the_ablation_counts_what_is_known_of_it(rows: list[dict[str, float]]) -> None:
    """Figures counted from an independent prototype, and the published totals of the last row."""
    assert [row["params_m"] for row in rows] == pytest.approx(
        [634.1, 623.6, 483.4, 511.1, 445.4, 372.05, 372.37, 372.38], abs=0.06
    )
    assert [row["gmacs_128"] for row in rows] == pytest.approx(
        [1266.8, 1052.1, 712.8, 755.1, 663.7, 624.2, 644.6, 644.6], abs=0.06
    )
    assert rows[-1]["gmacs_32"] == pytest.approx(37.92, abs=0.005)


def test_counted_changes_are_near_the_published_ones(rows: list[dict[str, float]]) -> None:
    for row in rows:
        for name in ("params_change", "macs_change"):
            if row[f"{name}_published"] is not None:
                assert row[name] == pytest.approx(row[f"{name}_published"], abs=3.1)


def test_markdown_says_the_same(rows: list[dict[str, float]]) -> None:
    lines = table("ablation", "md").splitlines()
    assert lines[1 + len(rows)].startswith("| 8. QK norm, RoPE: SnapGen | 372.38 | 37.92 | 644.6 |")
