"""Distillation in small: students of one teacher on equal images of captioned emoji (experiments/emoji/t2i)."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from snapgen_pl.experiments import experiments_dir
from snapgen_pl.metrics.emoji_judge.maps import KINDS
from snapgen_pl.tables.layout import Row, Table, number
from snapgen_pl.tables.records import RowRecord, Spread, machines, read_records, spread

FOLDER = experiments_dir() / "emoji" / "t2i"
TEACHER = "teacher"
UNTAUGHT = "student"
# The values of a row, and what they are called in Markdown.
COLUMNS = {
    "validation_loss": "val loss",
    "kd": "val L_kd",
    "kid_effnet": "kid_effnet",
    **{kind: f"{kind} %" for kind in KINDS},
}
ROWS = {
    TEACHER: "the teacher",
    UNTAUGHT: "no distillation",
    "output": "outputs",
    "multilevel": "outputs and features, fixed weights",
    "timestep_aware": "the same, timestep-aware: SnapGen",
    "timestep_bin": "the same, ratios of running means by time",
    "lambda_half": "timestep-aware, lambda at most 0.5",
}
# What a row's file is a delta to, and that to, back to the first.
_BEFORE = {"output": UNTAUGHT, "multilevel": UNTAUGHT, "timestep_aware": "multilevel",
           "timestep_bin": "multilevel", "lambda_half": "multilevel"}  # fmt: skip


def files(row: str) -> tuple[Path, ...]:
    """What a row is declared by."""
    before = files(_BEFORE[row]) if row in _BEFORE else ()
    return *before, FOLDER / f"{row}.yaml"


def recipe_files(row: str) -> tuple[Path, ...]:
    """What a row's training depends on: its files, the texts', and, of students, the teacher's."""
    return FOLDER / "encode_texts.yaml", *(() if row == TEACHER else files(TEACHER)), *files(row)


RECIPES = {row: recipe_files(row) for row in ROWS}


def distillation_table(reports: Path | None) -> Table:
    """How near students come to data, teacher and captions, beside their teacher and real images."""
    runs = read_records(reports or experiments_dir() / "results" / "emoji_distillation", RECIPES)
    values = {row: _values(runs[row]) for row in ROWS}
    return Table(
        rows=[_row(row, runs[row], values[row]) for row in ROWS],
        header=("row", *COLUMNS.values(), "images", "training s", "seeds"),
        cells=[_cells(row, runs[row], values[row]) for row in ROWS],
        notes=_notes([run for each in runs.values() for run in each]),
    )


def _values(runs: Sequence[RowRecord]) -> dict[str, Spread]:
    validation = {
        name: Spread.of([run.validation[key] for run in runs if key in run.validation])
        for name, key in {"validation_loss": "loss", "kd": "kd"}.items()
    }
    return validation | {name: spread(runs, name) for name in COLUMNS if name not in validation}


def _row(row: str, runs: Sequence[RowRecord], values: Mapping[str, Spread]) -> Row:
    means: dict[str, float | None] = {}
    for name, value in values.items():
        means |= {name: value.mean, f"{name}_sd": value.deviation}
    return {
        "row": ROWS[row],
        "seeds": len(runs),
        "images": _images(runs),
        **means,
        "training_seconds": _seconds(runs),
        "hardware": machines(runs) or None,
    }


def _cells(row: str, runs: Sequence[RowRecord], values: Mapping[str, Spread]) -> list[str]:
    shown = [_shown(name, values[name]) for name in COLUMNS]
    images = _images(runs)
    return [
        ROWS[row], *shown, "" if images is None else f"{images:,}", number(_seconds(runs), 0), str(len(runs) or "")
    ]  # fmt: skip


def _shown(name: str, value: Spread) -> str:
    return value.cell(1, scale=100) if name in KINDS else value.cell(2 if name == "kid_effnet" else 3)


def _images(runs: Sequence[RowRecord]) -> int | None:
    for run in runs:
        seen = run.report.weights["images_seen"]
        assert isinstance(seen, int)
        return seen
    return None


def _seconds(runs: Sequence[RowRecord]) -> float | None:
    return Spread.of([run.training_seconds for run in runs]).mean


def _notes(runs: Sequence[RowRecord]) -> str:
    if not runs:
        return "Nothing is measured yet; `make experiments` trains the rows."
    report = runs[0].report
    controls = "; ".join(
        f"{control}: "
        + ", ".join(f"{name} {_shown(name, Spread(score.value, None))}" for name, score in scores.items())
        for control, scores in report.controls.items()
    )
    samples = report.measurement["samples"]
    text = (
        f"Losses are of held-out emoji, L_kd is the distance from the teacher, unscaled. {samples} samples, each for a "
        f"held-out caption, by {report.drawing['sampler']}, {report.drawing['guidance']}: "
        "`kid_effnet` is their distance from training images; `judge_top1` is how often a linear map, trained on real "
        "training images alone, finds an image's own caption among 100 of the same style, `judge_style` how often "
        f"another finds its style among four. Images of known quality: {controls}. Seconds are of runs on "
        f"{machines(runs)}; rows that ran beside other work took longer than they need."
    )
    return textwrap.fill(text, 120)
