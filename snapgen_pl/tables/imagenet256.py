"""ImageNet-256 with guidance: SnapGen beside its peers."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from snapgen_pl.experiments import experiments_dir
from snapgen_pl.tables.declared import declared_cost, measured_fids
from snapgen_pl.tables.layout import Table, number
from snapgen_pl.tables.published import IMAGENET256, NOT_REPRODUCED

NOTES = f"""\
Counted / published. Counted are the denoisers of the YAML files in experiments/imagenet256, without label tables, at
the published latent: 64x64x3 for LDM-4, 32x32x4 for the others, with one context token, SnapGen with 77. The published
"GFLOPs" are multiply-accumulates. FIDs are published, by each model's own sampler, and with guidance; FID measured is
of 50,000 samples of a run or of released weights, where a report exists.
{NOT_REPRODUCED}"""


class ModelRow(NamedTuple):
    """A row of the table.

    Attributes:
        model: its name.
        params_m: millions of parameters of the denoiser, counted.
        params_m_published: as published.
        gmacs: billions of multiply-accumulates of one forward, counted.
        gmacs_published: as published, under the name of GFLOPs.
        fid_published: of ImageNet-256, with guidance.
        fid_measured: measured with this project.
    """

    model: str
    params_m: float
    params_m_published: float
    gmacs: float
    gmacs_published: float
    fid_published: float
    fid_measured: float | None


def imagenet256(fids: Mapping[str, float]) -> list[ModelRow]:
    """Counts every model from its YAML.

    Args:
        fids: measured, by the row's key.
    """
    folder = experiments_dir() / "imagenet256"
    rows = []
    for published in IMAGENET256:
        cost = declared_cost(
            folder / published.file,
            size=published.latent_size,
            tokens=published.tokens,
            in_channels=published.channels,
        )
        rows.append(
            ModelRow(
                published.model,
                round(cost.params_m, 3),
                published.params_m,
                round(cost.gmacs, 3),
                published.gmacs,
                published.fid,
                fids.get(published.key),
            )
        )
    return rows


def imagenet256_table(reports: Path | None) -> Table:
    """Counted and published figures side by side."""
    rows = imagenet256(measured_fids(reports))
    cells = [
        (
            row.model,
            f"{row.params_m:.1f} / {row.params_m_published:.0f}",
            f"{row.gmacs:.1f} / {row.gmacs_published:.0f}",
            f"{row.fid_published:.2f}",
            number(row.fid_measured, 2),
        )
        for row in rows
    ]
    header = ("model", "params M", "GMACs", "FID published", "FID measured")
    return Table([row._asdict() for row in rows], header, cells, NOTES)
