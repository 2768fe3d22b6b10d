"""Distillation in small, really trained: ``python -m benchmarks.emoji_distillation``, or ``make experiments``.

The captions' states first, then the teacher, then its students seed by seed; what has a record is not done again, and a
run that was interrupted goes on where it was. ``python -m snapgen_pl table distillation`` prints the records.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import auto_cli

from benchmarks.rows import TrainedRow
from snapgen_pl.data.shards import MANIFEST
from snapgen_pl.tables.distillation import FOLDER, RECIPES, ROWS, TEACHER, files
from snapgen_pl.tables.records import recipe

RESULTS = Path("experiments/results/emoji_distillation")
# Where the experiments look for them.
TEXTS = Path("runs/emoji-texts/texts")
TEACHER_RUN = Path("runs/emoji-teacher")


def main(rows: Sequence[str] = tuple(ROWS), seeds: Sequence[int] = (0,)) -> None:
    """Trains, measures and records rows.

    Args:
        rows: of the table; ``teacher`` is trained once, whatever rows and seeds, and before its students.
        seeds: of the students; three where a GPU makes them quick.

    Raises:
        ValueError: for a row that there is no file of.
    """
    if unknown := [row for row in rows if row not in ROWS]:
        raise ValueError(f"no rows {unknown}; there are {', '.join(ROWS)}")
    students = [trained(row, seed) for seed in seeds for row in rows if row != TEACHER]
    missing = [student for student in students if not student.recorded(RESULTS)]
    teacher = trained(TEACHER, 0)
    if not missing and teacher.recorded(RESULTS):
        return
    if not (TEXTS / MANIFEST).exists():
        config = str(FOLDER / "encode_texts.yaml")
        subprocess.run([sys.executable, "-m", "snapgen_pl", "predict", "--config", config], check=True)
    teacher.train()  # students need its weights, whether or not its record is there
    teacher.make(RESULTS)
    for student in missing:
        student.make(RESULTS)


def trained(row: str, seed: int) -> TrainedRow:
    """A row's run."""
    folder = TEACHER_RUN if row == TEACHER else Path("runs/emoji-distillation") / f"{row}-seed{seed}"
    return TrainedRow(row, seed, files(row), recipe(RECIPES[row]), folder)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
