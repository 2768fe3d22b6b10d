"""What a training step of each stage takes: SnapGen beside its peers, as students of one teacher."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from snapgen_pl.experiments import experiments_dir
from snapgen_pl.tables.layout import Table
from snapgen_pl.whole_files import read_json

RECORD = "training_cpu.json"
STUDENTS = {
    "snapgen": "SnapGen",
    "dit_xl_2": "DiT-XL/2",
    "uvit_h": "U-ViT-H",
    "thin_sdxl": "thin SDXL",
    "dreamlite": "diffusers' DreamLite",
}
STEPS = {
    "pretraining": "pretraining",
    "distillation": "distillation",
    "generator": "generator's turn",
    "discriminator": "discriminator's turn",
}

NOTES = """\
Seconds of a step / over SnapGen's / percent of it that are the student's own forward and backward pass. Batch {batch},
{size}x{size} latents, fp32, least process CPU time of {rounds} interleaved rounds on one core
({processor}, {date}). A step has the loss terms of the stage's module, gradients,
clipping, fused AdamW and the average. The teacher has SD3.5-Large's widths, but {params} M parameters in place of
8,057 M, {gmacs} GMACs; it is asked for guided velocities in distillation. Turns are those of step distillation. All
weights are random."""


class TrainingRow(NamedTuple):
    """A step of a student.

    Attributes:
        step: of which stage, or whose turn.
        student: the network that is trained, or whose guesses are judged.
        seconds: the least CPU time of it.
        ratio: over SnapGen's.
        student_share: of the student's forward and backward passes, in percent.
        teacher_share: of the teacher, and in the generator's turn of the gradients through it.
        heads_share: of the discriminator's.
        optimizer_share: of clipping and AdamW.
        average_share: of the average.
    """

    step: str
    student: str
    seconds: float
    ratio: float
    student_share: float
    teacher_share: float
    heads_share: float
    optimizer_share: float
    average_share: float


def training(record: Mapping[str, Any]) -> list[TrainingRow]:
    """Every step of every student, of a record of ``python -m benchmarks.training``."""
    return list(_rows(record))


def training_table(reports: Path | None) -> Table:
    """A row a student, a column a stage.

    Raises:
        ValueError: where there is no record.
    """
    file = (reports or experiments_dir() / "results") / RECORD
    record = read_json(file, f"make one: python -m benchmarks.training --json {file}")
    rows = training(record)
    cells: dict[str, list[str]] = {}
    for row in rows:  # step by step, each of all students
        told = f"{row.seconds:.2f} / {row.ratio:.2f} / {row.student_share:.0f}"
        cells.setdefault(row.student, [row.student]).append(told)
    header = ("student", *dict.fromkeys(row.step for row in rows))
    return Table([row._asdict() for row in rows], header, list(cells.values()), _notes(record))


def _rows(record: Mapping[str, Any]) -> Iterator[TrainingRow]:
    for step, students in record["stages"].items():
        for key, found in students.items():
            seconds = {part: timing["cpu_min_s"] for part, timing in found["parts"].items()}
            shares = [
                round(100 * seconds.get(part, 0.0) / sum(seconds.values()), 1)
                for part in ("student", "teacher", "heads", "optimizer", "average")
            ]
            least = found["step"]["cpu_min_s"]
            ratio = least / students["snapgen"]["step"]["cpu_min_s"]
            yield TrainingRow(STEPS[step], STUDENTS[key], round(least, 4), round(ratio, 4), *shares)


def _notes(record: Mapping[str, Any]) -> str:
    where, teacher = record["environment"], record["costs"]["teacher"]
    return NOTES.format(
        batch=record["batch"],
        size=record["size"],
        rounds=next(iter(record["stages"].values()))["snapgen"]["step"]["rounds"],
        processor=where["processor"],
        date=where["date"][:10],
        params=f"{teacher['params'] / 1e6:.0f}",
        gmacs=f"{teacher['macs'] / 1e9:.0f}",
    )
