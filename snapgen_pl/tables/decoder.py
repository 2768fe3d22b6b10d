"""The way from SD3's decoder to SnapGen's."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from snapgen_pl.experiments import experiments_dir
from snapgen_pl.tables.declared import declared_decoder_cost
from snapgen_pl.tables.layout import Table, number
from snapgen_pl.tables.published import DECODERS

LATENT_SIZE = 128  # of an image of 1024 px

NOTES = """\
Counted / published. Counted are the decoders of the YAML files in experiments/decoder/ladder, from latents of 16
channels, SDXL's of 4. The published "GFLOPs" are multiply-accumulates of an image of 1024 px; as published they hold
convolutions, linear layers, norms and upsampling, and leave the products of attention out. The steps are the paper's,
the shapes of all rungs below SD3 are decided here, fitted to the totals of the last. PSNRs in dB are published ones;
those measured here stand beside, with the seconds of an image, where a record exists."""


class DecoderRow(NamedTuple):
    """A row of the table.

    Attributes:
        decoder: its key.
        params_m: millions of parameters, counted.
        params_m_published: as published.
        gflops_1024: billions of multiply-accumulates of an image of 1024 px, counted.
        gflops_1024_published: as published.
        psnr_published: in dB, as published.
        psnr_measured: in dB, of a decoder of this project.
        seconds: of an image, measured with it.
    """

    decoder: str
    params_m: float
    params_m_published: float | None
    gflops_1024: float
    gflops_1024_published: float | None
    psnr_published: float | None
    psnr_measured: float | None
    seconds: float | None


class Measured(NamedTuple):
    """What was measured of a decoder: PSNR of its reconstructions in dB, and seconds of an image."""

    psnr: float | None = None
    seconds: float | None = None


def decoders(measured: Mapping[str, Measured]) -> list[DecoderRow]:
    """Counts every rung from its YAML, the reference last.

    Args:
        measured: by a row's key.
    """
    folder = experiments_dir() / "decoder" / "ladder"
    rows = []
    for published in DECODERS:
        file = folder / f"{published.file}.yaml"
        cost = declared_decoder_cost(file, size=LATENT_SIZE, in_channels=published.channels)
        found = measured.get(published.key, Measured())
        rows.append(
            DecoderRow(
                published.key,
                round(cost.params_m, 4),
                published.params_m,
                round(cost.gmacs, 2),
                published.gflops,
                published.psnr,
                found.psnr,
                found.seconds,
            )
        )
    return rows


def read_measured(folder: Path) -> dict[str, Measured]:
    """What ``<row>.json`` files hold, by their names without ending.

    Raises:
        ValueError: for a file that is no record of a row.
    """
    found: dict[str, Measured] = {}
    for file in sorted(folder.glob("*.json")):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            found[file.stem] = Measured(record["psnr"], record["seconds"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is no record of a decoder, which has psnr and seconds: {error!r}") from error
    keys = [published.key for published in DECODERS]
    if strangers := found.keys() - set(keys):
        raise ValueError(f"{folder} has records of {sorted(strangers)}; the table's rows are {', '.join(keys)}")
    return found


def decoder_table(reports: Path | None) -> Table:
    """Counted and published figures side by side."""
    rows = decoders(read_measured(reports or experiments_dir() / "results" / "decoder"))
    header = ("decoder", "params M", "GFLOPs 1024 px", "PSNR published", "PSNR measured", "seconds")
    cells = [
        (
            published.rung,
            _beside(f"{row.params_m:.2f}", row.params_m_published, 2),
            _beside(f"{row.gflops_1024:.0f}", row.gflops_1024_published, 0),
            number(row.psnr_published, 2),
            number(row.psnr_measured, 2),
            number(row.seconds, 2),
        )
        for published, row in zip(DECODERS, rows, strict=True)
    ]
    return Table([row._asdict() for row in rows], header, cells, NOTES)


def _beside(counted: str, published: float | None, digits: int) -> str:
    return f"{counted} / {'-' if published is None else f'{published:.{digits}f}'}"
