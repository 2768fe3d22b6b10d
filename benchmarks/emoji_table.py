"""The published tables in small, really trained: ``python -m benchmarks.emoji_table``, or ``make experiments``.

Row by row and seed by seed; what has a record is not done again, and a run that was interrupted goes on where it was.
``python -m snapgen_pl table emoji`` prints the records.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from jsonargparse import auto_cli
from matplotlib.figure import Figure

from benchmarks.networks import Subject
from benchmarks.rows import TrainedRow, check_rows
from benchmarks.unet import run_cpu
from snapgen_pl.models.denoiser import Denoiser
from snapgen_pl.tables.emoji import (
    FILES,
    LATENT_SIZE,
    QUALITY,
    REFERENCE,
    ROWS,
    SNAPGEN,
    SmallRow,
    emoji,
    small_denoiser,
    step_times,
)
from snapgen_pl.tables.records import read_records, recipe
from snapgen_pl.whole_files import write_json

RESULTS = Path("experiments/results/emoji_table")
SPEED = Path("experiments/results/emoji_table_speed.json")
PLOT = Path("experiments/results/emoji_table.png")


def main(rows: Sequence[str] = tuple(ROWS), seeds: Sequence[int] = (0,), runs: Path = Path("runs")) -> None:
    """Trains, measures and records rows, and draws quality against compute.

    Args:
        rows: files of experiments/emoji/table, without their ending.
        seeds: of the runs; three where a GPU makes them quick.
        runs: the folder of all runs.

    Raises:
        ValueError: for a row that there is no file of.
    """
    check_rows(rows, ROWS)
    for seed in seeds:
        for row in rows:
            trained(row, seed, runs).make(RESULTS)
    if not SPEED.exists():
        time_steps(SPEED)
    plot(emoji(read_records(RESULTS, FILES), step_times(RESULTS)), PLOT)
    print(f"Drawn in {PLOT}")


def trained(row: str, seed: int, runs: Path) -> TrainedRow:
    """A row's run."""
    return TrainedRow(row, seed, FILES[row], recipe(FILES[row]), runs / "emoji-table" / f"{row}-seed{seed}")


def time_steps(path: Path) -> None:
    """Times predictions and training steps of all rows in turn, on one core."""
    torch.set_num_threads(1)
    subjects = {SNAPGEN: REFERENCE} | {row: row for row in ROWS if row != REFERENCE}
    networks = {name: Subject(partial(_small_denoiser, row), tokens=1) for name, row in subjects.items()}
    report = run_cpu(networks, batch=8, size=LATENT_SIZE, rounds=3, training_rounds=3)
    write_json(report.record(), path)


def _small_denoiser(row: str, size: int) -> Denoiser:
    """Of the latents that the row declares, which are of this size."""
    return small_denoiser(row)


def plot(rows: Sequence[SmallRow], path: Path) -> None:
    """Draws kid_effnet and validation loss of every measured row against its compute."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axes, quality in zip(figure.subplots(1, 2), (QUALITY, "validation_loss"), strict=True):
        for row in rows:
            value = getattr(row, quality)
            if value is None:
                continue
            ours = row.row[0].isdigit()
            axes.plot(row.gmacs, value, marker="o" if ours else "s", color="tab:blue" if ours else "tab:orange")
            axes.annotate(
                row.row.split(".")[0] if ours else row.row, (row.gmacs, value), (5, 4), textcoords="offset points"
            )
        axes.set(xlabel="GMACs of a forward at 32x32 latents", ylabel=quality, xscale="log")
        axes.grid(alpha=0.3)
    figure.suptitle("Blue: rows 1 to 8 of the ablation, 8 is SnapGen; orange: peers. Lower is better")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
