"""The published tables, their counts made here from the very configurations that train."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import yaml
from jsonargparse import ArgumentParser

from snapgen_pl.experiments import experiments_dir
from snapgen_pl.metrics.published import ABLATION
from snapgen_pl.models.count import count
from snapgen_pl.models.denoiser import Denoiser

CLASS_TEXT_TOKENS = 77
ABLATION_NOTES = """\
Parameters and GMACs are counted from the YAML files in experiments/imagenet256/ablation (4 latent channels, 77 context
tokens of width 768); changes are those counted / those published, in percent, GMACs at 128x128 latents. Row 4 compares
with row 2. The published changes are reported by a third party, and its pair for the separable step (-24, -15) together
with the total of 372 M fits no single structure that was tried. FIDs are published, none is reproduced here."""


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


def table(name: Literal["ablation"], format: Literal["md", "json"] = "md") -> str:  # noqa: A002 (the flag's name)
    """Makes a published table.

    Args:
        name: which one; ``ablation`` is the way from SDXL's UNet to SnapGen's.
        format: Markdown or JSON.
    """
    rows = ablation()
    if format == "json":
        return json.dumps([row._asdict() for row in rows], indent=2)
    return _ablation_markdown(rows)


def ablation() -> list[AblationRow]:
    """Counts every row of the ablation from its YAML, the reference last."""
    folder = experiments_dir() / "imagenet256" / "ablation"
    rows: list[AblationRow] = []
    for step in ABLATION:
        denoiser = declared_denoiser(folder / f"{step.file}.yaml")
        small, large = (count(denoiser, size, CLASS_TEXT_TOKENS) for size in (32, 128))
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
            )
        )
    return rows


def declared_denoiser(file: Path) -> Denoiser:
    """The denoiser that a configuration declares, on the meta device.

    Args:
        file: YAML with ``model.init_args.denoiser``.
    """
    parser = ArgumentParser()
    parser.add_subclass_arguments(Denoiser, "denoiser")
    declared = yaml.safe_load(file.read_text())["model"]["init_args"]["denoiser"]
    with torch.device("meta"):
        denoiser: Denoiser = parser.instantiate(parser.parse_object({"denoiser": declared})).denoiser
    return denoiser


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others numbers."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def _ablation_markdown(rows: list[AblationRow]) -> str:
    header = ("row", "params M", "GMACs 32x32", "GMACs 128x128", "params change", "MACs change", "FID published")
    cells = [
        (
            f"{number}. {row.row}",
            f"{row.params_m:.2f}",
            f"{row.gmacs_32:.2f}",
            f"{row.gmacs_128:.1f}",
            _change(row.params_change, row.params_change_published),
            _change(row.macs_change, row.macs_change_published),
            "" if row.fid_published is None else f"{row.fid_published:.2f}",
        )
        for number, row in enumerate(rows, start=1)
    ]
    return f"{markdown(header, cells)}\n\n{ABLATION_NOTES}"


def _percent(value: float, before: float) -> float:
    return round(100 * (value / before - 1), 1)


def _change(counted: float | None, published: float | None) -> str:
    if counted is None:
        return ""
    return f"{counted:+.1f} / {'-' if published is None else f'{published:+.0f}'}"
