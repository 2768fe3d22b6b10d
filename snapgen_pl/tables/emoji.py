"""The published tables in small: every row trained here, on equal images of emoji (experiments/emoji/table)."""

import json
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from snapgen_pl.digest import values_digest
from snapgen_pl.experiments import experiments_dir
from snapgen_pl.metrics.fid_report import FIDReport, check_comparable, parse_report
from snapgen_pl.models.denoiser import Denoiser
from snapgen_pl.tables.declared import declared_cost, declared_denoiser
from snapgen_pl.tables.layout import Table, number
from snapgen_pl.whole_files import write_json

TABLE = experiments_dir() / "emoji" / "table"
LATENT_SIZE = 32
ALIKE = ("sampler", "guidance", "precision", "decoder")
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


class RowRecord(NamedTuple):
    """One run of a row.

    Attributes:
        row: the stem of its file.
        seed: of the run.
        validation_loss: of the EMA weights, after the last step.
        training_seconds: without validation and sampling.
        recipe: hash of what it was trained by, see :func:`recipe`.
        report: of its samples.
    """

    row: str
    seed: int
    recipe: str
    validation_loss: float
    training_seconds: float
    report: FIDReport

    def write(self, folder: Path) -> Path:
        """Writes ``<row>-seed<n>.json``, whole or not at all."""
        path = folder / f"{self.row}-seed{self.seed}.json"
        folder.mkdir(parents=True, exist_ok=True)
        write_json(self._asdict() | {"report": self.report.content()}, path)
        return path


def recipe(row: str) -> str:
    """SHA-256 over model, data and length of a row, as its files declare them now."""
    files = [yaml.safe_load((TABLE / f"{name}.yaml").read_text(encoding="utf-8")) for name in ("base", row)]
    kept = [{key: file.get(key) for key in ("model", "data", "ema")} for file in files]
    return values_digest({"files": kept, "steps": files[0]["trainer"]["max_steps"]})


def read_records(folder: Path) -> list[RowRecord]:
    """All records of a folder; no two of them measured differently, each by the recipe of today.

    Raises:
        ValueError: naming what is no record, is of another recipe, or does not compare.
    """
    records: dict[str, RowRecord] = {}
    for file in sorted(folder.glob("*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            records[file.stem] = RowRecord(**content | {"report": parse_report(content["report"])})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is no record of a table's row: {error}") from error
    if old := [name for name, record in records.items() if record.recipe != recipe(record.row)]:
        raise ValueError(
            f"{', '.join(old)} in {folder}: trained by another recipe than experiments/emoji/table has now; delete "
            "these records and their runs, and run `make experiments`"
        )
    check_comparable({name: record.report for name, record in records.items()}, ALIKE)
    return list(records.values())


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


def small_denoiser(row: str) -> Denoiser:
    """A row's network, on the meta device."""
    return declared_denoiser(*_files(row))


def _files(row: str) -> tuple[Path, Path]:
    return TABLE / "base.yaml", TABLE / f"{row}.yaml"


def emoji(records: Sequence[RowRecord], times: Mapping[str, float]) -> list[SmallRow]:
    """Counts every row, and takes the means of its runs.

    Args:
        records: of the runs.
        times: of training steps, see :func:`step_times`.
    """
    runs = {key: [record for record in records if record.row == key] for key in ROWS}
    reference = _values(runs[REFERENCE])
    rows = []
    for key, name in ROWS.items():
        cost = declared_cost(*_files(key), size=LATENT_SIZE, tokens=1)
        row = _row(name, round(cost.params_m, 2), round(cost.gmacs, 3), runs[key], reference)
        rows.append(row._replace(step_time=times.get(key)))
    return rows


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
    records = read_records(folder)
    rows = emoji(records, step_times(folder))
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
            number(row.kid_effnet, 2) + ("" if row.kid_effnet_sd is None else f" ± {row.kid_effnet_sd:.2f}"),
            number(row.validation_loss, 4),
            _verdict(row),
            number(row.training_seconds, 0),
            number(row.sampling_seconds, 0),
            str(row.seeds or ""),
        )
        for row in rows
    ]
    return Table([row._asdict() for row in rows], header, cells, _notes(rows, records))


def _row(name: str, params_m: float, gmacs: float, runs: list[RowRecord], reference: list[float]) -> SmallRow:
    if not runs:
        return SmallRow(name, params_m, gmacs, 0, *[None] * 9)
    values = _values(runs)
    frechet = [score.value for run in runs for key, score in run.report.values.items() if key.startswith("fd_effnet@")]
    machines = {_machine(run.report) for run in runs}
    return SmallRow(
        name,
        params_m,
        gmacs,
        len(runs),
        statistics.fmean(values),
        statistics.stdev(values) if len(values) > 1 else None,
        statistics.fmean(frechet) if frechet else None,
        statistics.fmean(run.validation_loss for run in runs),
        _resolved(values, reference),
        statistics.fmean(run.training_seconds for run in runs),
        statistics.fmean(run.report.seconds for run in runs),
        None,
        ", ".join(sorted(machines)),
    )


def _values(runs: Sequence[RowRecord]) -> list[float]:
    return [run.report.values[QUALITY].value for run in runs]


def _resolved(values: list[float], reference: list[float]) -> bool | None:
    if min(len(values), len(reference)) < 2:
        return None
    spread = max(statistics.stdev(values), statistics.stdev(reference))
    return abs(statistics.fmean(values) - statistics.fmean(reference)) >= 2 * spread


def _verdict(row: SmallRow) -> str:
    if row.row == ROWS[REFERENCE] or not row.seeds:
        return ""
    if row.resolved is None:
        return "one seed"
    return "resolved" if row.resolved else "not resolved"


def _machine(report: FIDReport) -> str:
    hardware = report.made["hardware"]
    assert isinstance(hardware, dict)
    return f"gpu: {hardware['gpus']}" if hardware["gpus"] else f"cpu: {hardware['cpu']}, threads: {hardware['threads']}"


def _notes(rows: list[SmallRow], records: list[RowRecord]) -> str:
    if not records:
        return "Nothing is measured yet; `make experiments` trains the rows."
    report = records[0].report
    beside = ", ".join(f"{name} {scores[QUALITY].value:.2f}" for name, scores in report.controls.items())
    machines = "; ".join(sorted({row.hardware for row in rows if row.hardware}))
    images, samples = report.weights["images_seen"], report.measurement["samples"]
    text = (
        f"{images:,} images each of 64 px emoji as 32x32x12 latents; {samples} samples by {report.drawing['sampler']}, "
        f"{report.drawing['guidance']}. {QUALITY} beside images of known quality: {beside}. A difference from SnapGen "
        "under twice the seeds' deviation is not resolved, and of one seed none is. Step time is a training step's "
        "over SnapGen's, in one interleaved run on one core. Seconds are of runs on "
        f"{machines}; rows that ran beside other work took longer than they need."
    )
    return textwrap.fill(text, 120)
