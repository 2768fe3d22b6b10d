"""The published tables in small: every row trained here, on equal images of emoji (experiments/emoji/table)."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from snapgen_pl.experiments import experiments_dir
from snapgen_pl.models.denoiser import Denoiser
from snapgen_pl.tables.declared import declared_cost, declared_denoiser
from snapgen_pl.tables.layout import Table, number
from snapgen_pl.tables.records import RowRecord, Spread, machines, read_records, spread

TABLE = experiments_dir() / "emoji" / "table"
LATENT_SIZE = 32
REFERENCE = "8_reference"
SNAPGEN = "snapgen"  # what benchmarks call the reference
QUALITY = "kid_effnet"
ROWS = {
    "1_sdxl_thin": "1. thin SDXL",
    "2_no_self_attention": "2. no self-attention above the lowest stage",
    "3_separable": "3. separable convolutions",
    "4_separable_x2": "4. separable convolutions, twice as wide inside",
    "5_ffn_3": "5. feed-forward expansion 4 to 3",
    "6_multi_query": "6. multi-query attention",
    "7_cross_attention_first": "7. cross-attention from the first stage",
    REFERENCE: "8. QK norm, RoPE: SnapGen",
    "ldm_4": "LDM-4",
    "uvit_l": "U-ViT-L",
    "uvit_h": "U-ViT-H",
    "dit_xl": "DiT-XL, SiT-XL",
}


class SmallRow(NamedTuple):
    """A row of the table in small; means over seeds.

    Attributes:
        row: its name.
        params_m: millions of parameters of the denoiser, counted.
        gmacs: billions of multiply-accumulates of one forward at 32x32 latents, counted.
        seeds: runs.
        kid_effnet: of the samples.
        kid_effnet_sd: over seeds; None of one.
        fd_effnet: the Frechet distance, where enough samples were drawn.
        validation_loss: after the last step.
        resolved: whether kid_effnet differs from the reference's by twice the larger of both deviations over seeds;
            None where one of them has one seed.
        training_seconds: of a run.
        sampling_seconds: of drawing and measuring a run's samples.
        step_time: of a training step, over the reference's, both in one interleaved run.
        hardware: what it ran on.
    """

    row: str
    params_m: float
    gmacs: float
    seeds: int
    kid_effnet: float | None
    kid_effnet_sd: float | None
    fd_effnet: float | None
    validation_loss: float | None
    resolved: bool | None
    training_seconds: float | None
    sampling_seconds: float | None
    step_time: float | None
    hardware: str | None


def files(row: str) -> tuple[Path, Path]:
    """What a row is declared by."""
    return TABLE / "base.yaml", TABLE / f"{row}.yaml"


FILES = {row: files(row) for row in ROWS}


def small_denoiser(row: str) -> Denoiser:
    """A row's network, on the meta device."""
    return declared_denoiser(*files(row))


def emoji(runs: Mapping[str, Sequence[RowRecord]], times: Mapping[str, float]) -> list[SmallRow]:
    """Counts every row, and takes the means of its runs.

    Args:
        runs: of each row.
        times: of training steps, see :func:`step_times`.
    """
    reference = spread(runs[REFERENCE], QUALITY)
    return [_row(row, runs[row], reference, times.get(row)) for row in ROWS]


def step_times(folder: Path) -> dict[str, float]:
    """The time of each row's training step over the reference's, as far as the benchmark measured it.

    Args:
        folder: of the records; the times lie beside it.
    """
    file = folder.with_name(f"{folder.name}_speed.json")
    if not file.exists():
        return {}
    times = json.loads(file.read_text(encoding="utf-8"))["training"]
    ours = times[SNAPGEN]["cpu_min_s"]
    return {REFERENCE if key == SNAPGEN else key: time["cpu_min_s"] / ours for key, time in times.items()}


def emoji_table(reports: Path | None) -> Table:
    """Quality beside compute, with the figures that images of known quality have."""
    folder = reports or experiments_dir() / "results" / "emoji_table"
    runs = read_records(folder, FILES)
    rows = emoji(runs, step_times(folder))
    header = (
        "row",
        "params M",
        "GMACs",
        "step time",
        QUALITY,
        "val loss",
        "against SnapGen",
        "training s",
        "sampling s",
        "seeds",
    )
    cells = [
        (
            row.row,
            f"{row.params_m:.2f}",
            f"{row.gmacs:.2f}",
            number(row.step_time, 2),
            Spread(row.kid_effnet, row.kid_effnet_sd).cell(2),
            number(row.validation_loss, 4),
            _verdict(row),
            number(row.training_seconds, 0),
            number(row.sampling_seconds, 0),
            str(row.seeds or ""),
        )
        for row in rows
    ]
    return Table(
        [row._asdict() for row in rows], header, cells, _notes([run for each in runs.values() for run in each])
    )


def _row(row: str, runs: Sequence[RowRecord], reference: Spread, step_time: float | None) -> SmallRow:
    cost = declared_cost(*files(row), size=LATENT_SIZE, tokens=1)
    quality = spread(runs, QUALITY)
    return SmallRow(
        row=ROWS[row],
        params_m=round(cost.params_m, 2),
        gmacs=round(cost.gmacs, 3),
        seeds=len(runs),
        kid_effnet=quality.mean,
        kid_effnet_sd=quality.deviation,
        fd_effnet=_frechet(runs),
        validation_loss=Spread.of([run.validation["loss"] for run in runs]).mean,
        resolved=quality.differs(reference),
        training_seconds=Spread.of([run.training_seconds for run in runs]).mean,
        sampling_seconds=Spread.of([run.report.seconds for run in runs]).mean,
        step_time=step_time,
        hardware=machines(runs) or None,
    )


def _frechet(runs: Sequence[RowRecord]) -> float | None:
    """It has the number of samples in its name, which is the same for all runs."""
    return Spread.of([score.value for run in runs for name, score in run.report.values.items()
                      if name.startswith("fd_effnet@")]).mean  # fmt: skip


def _verdict(row: SmallRow) -> str:
    if row.row == ROWS[REFERENCE] or not row.seeds:
        return ""
    if row.resolved is None:
        return "one seed"
    return "resolved" if row.resolved else "not resolved"


def _notes(runs: Sequence[RowRecord]) -> str:
    if not runs:
        return "Nothing is measured yet; `make experiments` trains the rows."
    report = runs[0].report
    beside = ", ".join(f"{name} {scores[QUALITY].value:.2f}" for name, scores in report.controls.items())
    images, samples = report.weights["images_seen"], report.measurement["samples"]
    text = (
        f"{images:,} images each of 64 px emoji as 32x32x12 latents; {samples} samples by {report.drawing['sampler']}, "
        f"{report.drawing['guidance']}. {QUALITY} beside images of known quality: {beside}. A difference from SnapGen "
        "under twice the seeds' deviation is not resolved, and of one seed none is. Step time is a training step's "
        "over SnapGen's, in one interleaved run on one core. Seconds are of runs on "
        f"{machines(runs)}; rows that ran beside other work took longer than they need."
    )
    return textwrap.fill(text, 120)
