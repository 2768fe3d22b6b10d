"""The published tables in small, really trained: ``python -m benchmarks.emoji_table``, or ``make experiments``.

Row by row and seed by seed; what has a record is not done again, and a run that was interrupted goes on where it was.
``python -m snapgen_pl table emoji`` prints the records.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import yaml
from jsonargparse import auto_cli
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.networks import Subject
from benchmarks.unet import run_cpu
from snapgen_pl import checkpoints
from snapgen_pl.metrics.fid_report import read_report
from snapgen_pl.runs import Run
from snapgen_pl.tables.emoji import (
    LATENT_SIZE,
    QUALITY,
    REFERENCE,
    ROWS,
    SNAPGEN,
    TABLE,
    RowRecord,
    SmallRow,
    emoji,
    read_records,
    recipe,
    small_denoiser,
    step_times,
)

METRICS = "metrics.json"
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
    if unknown := [row for row in rows if row not in ROWS]:
        raise ValueError(f"no rows {unknown}; there are {', '.join(ROWS)}")
    for seed in seeds:
        for row in rows:
            if not (RESULTS / f"{row}-seed{seed}.json").exists():
                train(row, seed, runs)
                print(f"Written to {record(row, seed, runs).write(RESULTS)}", flush=True)
    if not SPEED.exists():
        time_steps(SPEED)
    plot(emoji(read_records(RESULTS), step_times(RESULTS)), PLOT)
    print(f"Drawn in {PLOT}")


def folder(row: str, seed: int, runs: Path) -> Path:
    """Where a row's run lies."""
    return runs / "emoji-table" / f"{row}-seed{seed}"


def train(row: str, seed: int, runs: Path) -> None:
    """Trains a row to its end, from where it was.

    Raises:
        subprocess.CalledProcessError: where ``fit`` fails; it says why by itself.
    """
    run = Run(folder(row, seed, runs))
    if (run.folder / METRICS).exists():
        return
    settings = {"runs": run.folder.parent, "name": run.folder.name, "seed_everything": seed}
    settings |= {"model.seed": seed, "data.seed": seed}
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    if run.exists():
        words += ["--ckpt_path", str(begin_again(run, steps()))]
    configs = ["--config", str(TABLE / "base.yaml"), "--config", str(TABLE / f"{row}.yaml")]
    subprocess.run([sys.executable, "-m", "snapgen_pl", "fit", *configs, *words], check=True)


def steps() -> int:
    """How long a row is trained."""
    return int(yaml.safe_load((TABLE / "base.yaml").read_text(encoding="utf-8"))["trainer"]["max_steps"])


def begin_again(run: Run, end: int) -> Path | str:
    """Where an interrupted run goes on: at its newest checkpoint before its end.

    A run at its end has nothing left to do for ``fit``; what was cut off there is validation and samples.
    """
    previous = run.folder / checkpoints.PREVIOUS
    at_end = checkpoints.step_of(checkpoints.newest(run.folder)) == end
    return previous if at_end else "last"


def record(row: str, seed: int, runs: Path) -> RowRecord:
    """What came out of a run that is at its end.

    Raises:
        ValueError: where the run is not, or was not validated after its last step.
    """
    run = folder(row, seed, runs)
    events = EventAccumulator(str(run)).Reload()
    loss, seconds = events.Scalars("val/loss")[-1], events.Scalars("train/seconds")[-1]
    report = read_report(run / METRICS)
    if loss.step != seconds.step:
        raise ValueError(f"{run}: validated at step {loss.step}, trained to {seconds.step}; the row's cadence must fit")
    return RowRecord(row, seed, recipe(row), loss.value, round(seconds.value, 1), report)


def time_steps(path: Path) -> None:
    """Times predictions and training steps of all rows in turn, on one core."""
    torch.set_num_threads(1)
    subjects = {SNAPGEN: REFERENCE} | {row: row for row in ROWS if row != REFERENCE}
    networks = {name: Subject(partial(small_denoiser, row), tokens=1) for name, row in subjects.items()}
    report = run_cpu(networks, batch=8, size=LATENT_SIZE, rounds=3, training_rounds=3)
    path.write_text(json.dumps(report.record(), indent=2) + "\n")


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
