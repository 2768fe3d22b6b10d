"""Distillation in small, really trained: ``python -m benchmarks.emoji_distillation``, or ``make experiments``.

The captions' states first, then the teacher, then its students seed by seed; what has a record is not done again, and a
run that was interrupted goes on where it was. ``python -m snapgen_pl table distillation`` prints the records.
"""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from jsonargparse import auto_cli
from matplotlib.figure import Figure

from benchmarks.rows import TrainedRow, check_rows
from snapgen_pl.data.shards import MANIFEST
from snapgen_pl.modules.pretrain import VALIDATION_BINS
from snapgen_pl.tables.distillation import FOLDER, RECIPES, ROWS, TEACHER, UNTAUGHT, files
from snapgen_pl.tables.records import RowRecord, read_records, recipe

RESULTS = Path("experiments/results/emoji_distillation")
PLOT = Path("experiments/results/emoji_distillation.png")
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
    check_rows(rows, ROWS)
    students = [trained(row, seed) for seed in seeds for row in rows if row != TEACHER]
    missing = [student for student in students if not student.recorded(RESULTS)]
    teacher = trained(TEACHER, 0)
    if missing or not teacher.recorded(RESULTS):
        _train(teacher, missing)
    runs = read_records(RESULTS, RECIPES)
    if runs[UNTAUGHT]:  # what the others are drawn beside
        plot(runs, PLOT)
        print(f"Drawn in {PLOT}")


def _train(teacher: TrainedRow, students: Sequence[TrainedRow]) -> None:
    if not (TEXTS / MANIFEST).exists():
        config = str(FOLDER / "encode_texts.yaml")
        subprocess.run([sys.executable, "-m", "snapgen_pl", "predict", "--config", config], check=True)
    teacher.train()  # students need its weights, whether or not its record is there
    teacher.make(RESULTS)
    for student in students:
        student.make(RESULTS)


def trained(row: str, seed: int) -> TrainedRow:
    """A row's run."""
    folder = TEACHER_RUN if row == TEACHER else Path("runs/emoji-distillation") / f"{row}-seed{seed}"
    return TrainedRow(row, seed, files(row), recipe(RECIPES[row]), folder)


def plot(runs: Mapping[str, Sequence[RowRecord]], path: Path) -> None:
    """Draws L_task and L_kd by time, of the first run of each student over that of the one without a teacher."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    students = {row: records[0].by_time for row, records in runs.items() if row != TEACHER and records}
    untaught = students[UNTAUGHT]
    for axes, (name, title) in zip(figure.subplots(1, 2), {"loss": "L_task", "kd": "L_kd"}.items(), strict=True):
        times = [float(begins) + 0.5 / VALIDATION_BINS for begins in untaught[name]]
        for row, by_time in students.items():
            ratios = [by_time[name][begins] / value for begins, value in untaught[name].items()]
            axes.plot(times, ratios, marker=".", label=ROWS[row])
        axes.set(xlabel="t: 0 is data, 1 is noise", title=f"{title} of held-out emoji, over that without a teacher")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
