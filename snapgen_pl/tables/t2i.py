"""Text-to-image at 1024 px: SnapGen beside its peers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from snapgen_pl.experiments import experiments_dir
from snapgen_pl.metrics.sample_report import SampleReport, check_comparable, read_report
from snapgen_pl.tables.declared import declared_denoiser
from snapgen_pl.tables.layout import Table, number
from snapgen_pl.tables.published import TEXT_TO_IMAGE

CONFIG = experiments_dir() / "t2i" / "kd_output.yaml"
REPORTS = experiments_dir() / "results" / "t2i"
SPEED = experiments_dir() / "results" / "t2i_throughput_cuda.json"
OURS = ("snapgen_no_kd", "snapgen")  # counted from our YAML
# The value of a report that a measured column shows; one by another judge has another name.
VALUES = {"geneval": "geneval", "dpg_blip": "dpg_blip", "clip": "clip_score", "image_reward": "image_reward"}

NOTES = """\
Parameters are counted / published: counted is the denoiser of experiments/t2i. All other figures are published by
SnapGen's authors, images/s at 1024 px; the sampler, batch and device of theirs, their prompts for CLIP's cosine and for
ImageReward, and which CLIP it was, are not known here. *Here* are figures of this project, where a report or record
exists: GenEval by transformers' port of its detector; DPG-Bench by BLIP's answers instead of mPLUG's, which do not
compare with the published ones; images/s by `python -m benchmarks.throughput` on a GPU. A column holds reports of one
protocol. None of SnapGen's published quality is reproduced here."""


class TextToImageRow(NamedTuple):
    """A row of the table.

    Attributes:
        model: its name.
        params_b: billions of parameters of the denoiser, counted.
        params_b_published: as published.
        images_per_s_published: at 1024 px.
        geneval_published: in [0, 1].
        dpg_published: in [0, 100].
        clip_published: a cosine.
        image_reward_published: likewise published.
        images_per_s: measured with this project; likewise the following.
        geneval: in [0, 1].
        dpg_blip: in [0, 100], of another judge's answers than the published one's.
        clip: a cosine.
        image_reward: of the published network.
    """

    model: str
    params_b: float | None
    params_b_published: float | None
    images_per_s_published: float | None
    geneval_published: float
    dpg_published: float
    clip_published: float
    image_reward_published: float
    images_per_s: float | None
    geneval: float | None
    dpg_blip: float | None
    clip: float | None
    image_reward: float | None


def t2i(measured: Mapping[str, Mapping[str, float]], images_per_s: float | None) -> list[TextToImageRow]:
    """Counts our rows, and puts what was measured beside what is published.

    Args:
        measured: values by a row's key, of each of :data:`VALUES`.
        images_per_s: of our rows.
    """
    counted = sum(weight.numel() for weight in declared_denoiser(CONFIG).parameters()) / 1e9
    return [
        TextToImageRow(
            told.model,
            round(counted, 4) if told.key in OURS else None,
            told.params_b,
            told.images_per_s,
            told.geneval,
            told.dpg,
            told.clip,
            told.image_reward,
            images_per_s if told.key in OURS else None,
            **{column: measured[column].get(told.key) for column in VALUES},
        )
        for told in TEXT_TO_IMAGE
    ]


def read_measured(folder: Path) -> dict[str, dict[str, float]]:
    """The values of each column, by row.

    Args:
        folder: of ``<row>-<column>.json`` files, which ``test`` wrote.

    Raises:
        ValueError: for a file that is no report, of no row and column, or without the column's value; and where those
            of a column were measured differently.
    """
    found: dict[str, dict[str, SampleReport]] = {column: {} for column in VALUES}
    rows = [told.key for told in TEXT_TO_IMAGE]
    for file in sorted(folder.glob("*.json")):
        row, _, column = file.stem.partition("-")
        if row not in rows or column not in VALUES:
            raise ValueError(
                f"{file} has no place in the table; call it <row>-<column>.json, the row one of {', '.join(rows)}, the "
                f"column one of {', '.join(VALUES)}"
            )
        report = read_report(file)
        if VALUES[column] not in report.values:
            raise ValueError(
                f"{file} holds {', '.join(report.values)}, not {VALUES[column]}: it is of another judge or less than "
                "the whole protocol, and does not stand in this column"
            )
        found[column][row] = report
    for column, reports in found.items():
        check_comparable({f"{row}-{column}": report for row, report in reports.items()})
    return {
        column: {row: report.values[VALUES[column]].value for row, report in reports.items()}
        for column, reports in found.items()
    }


def read_speed(file: Path) -> float | None:
    """Images a second, all included, from a record of ``benchmarks.throughput`` at full size; None without one.

    Raises:
        ValueError: for a record of another size, or of a CPU, which does not stand beside those of GPUs.
    """
    if not file.exists():
        return None
    record = json.loads(file.read_text(encoding="utf-8"))
    if record["size"] != "full":
        raise ValueError(f"{file} is of the size {record['size']}; the table is of full ones")
    if record["environment"]["accelerator"] is None:
        raise ValueError(f"{file} is of a CPU; the table's published speeds are of GPUs")
    return float(record["images_per_s"]["all"])


def t2i_table(reports: Path | None) -> Table:
    """Published and measured figures side by side."""
    rows = t2i(read_measured(reports or REPORTS), read_speed(SPEED))
    header = (
        "model",
        "params B",
        "images/s",
        "GenEval",
        "DPG",
        "CLIP",
        "ImageReward",
        "here: images/s",
        "GenEval",
        "DPG by BLIP",
        "CLIP",
        "ImageReward",
    )
    cells = [
        (
            row.model,
            _beside(row.params_b, row.params_b_published),
            number(row.images_per_s_published, 2),
            number(row.geneval_published, 2),
            number(row.dpg_published, 1),
            number(row.clip_published, 3),
            number(row.image_reward_published, 2),
            number(row.images_per_s, 2),
            number(row.geneval, 2),
            number(row.dpg_blip, 1),
            number(row.clip, 3),
            number(row.image_reward, 2),
        )
        for row in rows
    ]
    return Table([row._asdict() for row in rows], header, cells, NOTES)


def _beside(counted: float | None, published: float | None) -> str:
    own = "" if counted is None else f"{counted:.3f} / "
    return own + ("" if published is None else str(published))
