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
from snapgen_pl.tables.distillation import FILES, FOLDER, ROWS, TEACHER

RESULTS = Path("experiments/results/emoji_distillation")
# Where the experiments look for them.
TEXTS = Path("runs/emoji-texts/texts")
TEACHER_RUN = Path("runs/emoji-teacher")


def main(rows: Sequence[str] = tuple(ROWS), seeds: Sequence[int] = (0,)) -> None:
    """Trains, measures and records rows.

    Args:
        rows: of the table; ``teacher`` is trained once, whatever the seeds, and before its students.
        seeds: of the students; three where a GPU makes them quick.

    Raises:
        ValueError: for a row that there is no file of.
    """
    if unknown := [row for row in rows if row not in ROWS]:
        raise ValueError(f"no rows {unknown}; there are {', '.join(ROWS)}")
    if not TEXTS.exists():
        config = str(FOLDER / "encode_texts.yaml")
        subprocess.run([sys.executable, "-m", "snapgen_pl", "predict", "--config", config], check=True)
    trained(TEACHER, 0).make(RESULTS)
    for seed in seeds:
        for row in rows:
            if row != TEACHER:
                trained(row, seed).make(RESULTS)


def trained(row: str, seed: int) -> TrainedRow:
    """A row's run."""
    folder = TEACHER_RUN if row == TEACHER else Path("runs/emoji-distillation") / f"{row}-seed{seed}"
    return TrainedRow(row, seed, FILES[row], folder)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
