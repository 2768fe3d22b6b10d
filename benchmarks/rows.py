"""Trains the rows of a table of real runs, one after the other, and records what came out."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from snapgen_pl import checkpoints
from snapgen_pl.metrics.fid_report import read_report
from snapgen_pl.runs import Run
from snapgen_pl.tables.records import RowRecord, recipe

METRICS = "metrics.json"


@dataclass(frozen=True)
class TrainedRow:
    """One run of a row.

    Attributes:
        row: its name in file names.
        seed: of the run.
        files: what it is declared by, each a delta to those before.
        folder: of the run.
    """

    row: str
    seed: int
    files: tuple[Path, ...]
    folder: Path

    def make(self, results: Path) -> None:
        """Trains and records, where there is no record yet."""
        if not (results / f"{self.row}-seed{self.seed}.json").exists():
            self.train()
            print(f"Written to {self.record().write(results)}", flush=True)

    def train(self) -> None:
        """Trains to the end, from where the run was.

        Raises:
            subprocess.CalledProcessError: where ``fit`` fails; it says why by itself.
        """
        run = Run(self.folder)
        if (self.folder / METRICS).exists():
            return
        settings = {"runs": self.folder.parent, "name": self.folder.name, "seed_everything": self.seed}
        settings |= {"model.seed": self.seed, "data.seed": self.seed}
        words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        if run.exists():
            words += ["--ckpt_path", str(begin_again(run, self._steps()))]
        configs = [word for file in self.files for word in ("--config", str(file))]
        subprocess.run([sys.executable, "-m", "snapgen_pl", "fit", *configs, *words], check=True)

    def record(self) -> RowRecord:
        """What came out of a run that is at its end.

        Raises:
            ValueError: where the run is not, or was not validated after its last step.
        """
        events = EventAccumulator(str(self.folder)).Reload()
        seconds = events.Scalars("train/seconds")[-1]
        names = [tag for tag in events.Tags()["scalars"] if tag.startswith("val/")]
        validation = {name.removeprefix("val/"): events.Scalars(name)[-1] for name in names}
        if late := [name for name, value in validation.items() if value.step != seconds.step]:
            raise ValueError(
                f"{self.folder}: trained to {seconds.step}, but {', '.join(late)} validated at another step; the row's "
                "cadence must fit"
            )
        return RowRecord(
            row=self.row,
            seed=self.seed,
            recipe=recipe(self.files),
            validation={name: value.value for name, value in validation.items()},
            training_seconds=round(seconds.value, 1),
            report=read_report(self.folder / METRICS),
        )

    def _steps(self) -> int:
        first = yaml.safe_load(self.files[0].read_text(encoding="utf-8"))
        return int(first["trainer"]["max_steps"])


def begin_again(run: Run, end: int) -> Path | str:
    """Where an interrupted run goes on: at its newest checkpoint before its end.

    A run at its end has nothing left to do for ``fit``; what was cut off there is validation and samples.
    """
    previous = run.folder / checkpoints.PREVIOUS
    at_end = checkpoints.step_of(checkpoints.newest(run.folder)) == end
    return previous if at_end else "last"
