"""The way from SDXL's UNet to SnapGen's."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from snapgen_pl.experiments import experiments_dir
from snapgen_pl.tables.declared import CLASS_TEXT_TOKENS, declared_cost, measured_fids
from snapgen_pl.tables.layout import Table, number
from snapgen_pl.tables.published import ABLATION

NOTES = """\
Parameters and GMACs are counted from the YAML files in experiments/imagenet256/ablation (4 latent channels, 77 context
tokens of width 768); changes are those counted / those published, in percent, GMACs at 128x128 latents. Row 4 compares
with row 2. The published changes are reported by a third party, and its pair for the separable step (-24, -15) together
with the total of 372 M fits no single structure that was tried. FIDs are published ones; those measured here stand in
the last column, where a report exists."""


class AblationRow(NamedTuple):
    """A row of the ablation.

    Attributes:
        row: what it changes.
        params_m: millions of parameters, counted.
        gmacs_32: billions of multiply-accumulates of one forward at 32x32 latents (256 px), counted.
        gmacs_128: the same at 128x128 (1024 px).
        params_change: percent against the row it compares with, counted.
        macs_change: the same for ``gmacs_128``.
        params_change_published: as published.
        macs_change_published: as published.
        fid_published: as published.
        fid_measured: of a run of this project.
    """

    row: str
    params_m: float
    gmacs_32: float
    gmacs_128: float
    params_change: float | None
    macs_change: float | None
    params_change_published: float | None
    macs_change_published: float | None
    fid_published: float | None
    fid_measured: float | None


def ablation(fids: Mapping[str, float]) -> list[AblationRow]:
    """Counts every row from its YAML, the reference last.

    Args:
        fids: measured, by the stem of a row's file.
    """
    folder = experiments_dir() / "imagenet256" / "ablation"
    rows: list[AblationRow] = []
    for step in ABLATION:
        file = folder / f"{step.file}.yaml"
        small, large = (declared_cost(file, size=size, tokens=CLASS_TEXT_TOKENS) for size in (32, 128))
        before = None if step.against is None else rows[step.against]
        rows.append(
            AblationRow(
                step.row,
                round(small.params_m, 3),
                round(small.gmacs, 3),
                round(large.gmacs, 2),
                None if before is None else _percent(small.params_m, before.params_m),
                None if before is None else _percent(large.gmacs, before.gmacs_128),
                step.params_change,
                step.macs_change,
                step.fid,
                fids.get(step.file),
            )
        )
    return rows


def ablation_table(reports: Path | None) -> Table:
    """Counted and published changes side by side."""
    rows = ablation(measured_fids(reports))
    header = (
        "row",
        "params M",
        "GMACs 32x32",
        "GMACs 128x128",
        "params change",
        "MACs change",
        "FID published",
        "FID measured",
    )
    cells = [
        (
            f"{place}. {row.row}",
            f"{row.params_m:.2f}",
            f"{row.gmacs_32:.2f}",
            f"{row.gmacs_128:.1f}",
            _change(row.params_change, row.params_change_published),
            _change(row.macs_change, row.macs_change_published),
            number(row.fid_published, 2),
            number(row.fid_measured, 2),
        )
        for place, row in enumerate(rows, start=1)
    ]
    return Table([row._asdict() for row in rows], header, cells, NOTES)


def _percent(value: float, before: float) -> float:
    return round(100 * (value / before - 1), 1)


def _change(counted: float | None, published: float | None) -> str:
    if counted is None:
        return ""
    return f"{counted:+.1f} / {'-' if published is None else f'{published:+.0f}'}"
