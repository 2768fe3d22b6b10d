"""Trains the rows of a table of real runs, one after the other, and records what came out."""

import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from snapgen_pl import checkpoints
from snapgen_pl.metrics.sample_report import read_report
from snapgen_pl.runs import Run
from snapgen_pl.tables.records import RowRecord, record_file
from snapgen_pl.whole_files import write_text

METRICS = "metrics.json"
RECIPE = "recipe.sha256"


@dataclass(frozen=True)
class TrainedRow:
    """One run of a row.

    Attributes:
        row: its name in file names.
        seed: of the run.
        files: what it is declared by, each a delta to those before.
        recipe: the hash of all that it depends on, see :func:`~snapgen_pl.tables.records.recipe`.
        folder: of the run.
    """

    row: str
    seed: int
    files: tuple[Path, ...]
    recipe: str
    folder: Path

    def recorded(self, results: Path) -> bool:
        """Whether there is a record."""
        return record_file(results, self.row, self.seed).exists()

    def make(self, results: Path, measure: Callable[[Path], Mapping[str, float]] = lambda folder: {}) -> None:
        """Trains and records, where there is no record yet.

        Args:
            results: the folder of records.
            measure: from the run's folder to what else is recorded of it.
        """
        if not self.recorded(results):
            self.train()
            print(f"Written to {self.record()._replace(more=measure(self.folder)).write(results)}", flush=True)

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do: its samples are measured."""
        return (self.folder / METRICS).exists()

    @property
    def steps(self) -> int:
        """When it ends; what comes later wins."""
        declared = [yaml.safe_load(file.read_text(encoding="utf-8")).get("trainer", {}) for file in self.files]
        return int({key: value for each in declared for key, value in each.items()}["max_steps"])

    def train(self) -> None:
        """Trains to the end, from where the run was.

        Raises:
            ValueError: where the run was begun by another recipe.
            subprocess.CalledProcessError: where ``fit`` fails; it says why by itself.
        """
        run = Run(self.folder)
        if run.exists():
            self._check_recipe()
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.recipe, self.folder / RECIPE)
        if self.ended:
            return
        self.fit({"ckpt_path": begin_again(run, self.steps)} if run.exists() else {})

    def fit(self, changes: Mapping[str, object]) -> None:
        """Runs ``fit`` on the row's files, with settings changed.

        Raises:
            subprocess.CalledProcessError: where it fails; it says why by itself.
        """
        settings = {"runs": self.folder.parent, "name": self.folder.name, "seed_everything": self.seed}
        settings |= {"model.seed": self.seed, "data.seed": self.seed, **changes}
        words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        configs = [word for file in self.files for word in ("--config", str(file))]
        subprocess.run([sys.executable, "-m", "snapgen_pl", "fit", *configs, *words], check=True)

    def record(self) -> RowRecord:
        """What came out of a run that is at its end.

        Raises:
            ValueError: where the run is not, was not validated after its last step, or is of another recipe.
        """
        self._check_recipe()
        events = EventAccumulator(str(self.folder)).Reload()
        seconds = events.Scalars("train/seconds")[-1]
        names = [tag for tag in events.Tags()["scalars"] if tag.startswith("val/")]
        validation = {name.removeprefix("val/"): events.Scalars(name)[-1] for name in names}
        if late := [name for name, value in validation.items() if value.step != seconds.step]:
            raise ValueError(
                f"{self.folder}: trained to {seconds.step}, but {', '.join(late)} validated at another step; the row's "
                "cadence must fit"
            )
        by_time = {name: _by_time(events, name) for name in validation}
        return RowRecord(
            row=self.row,
            seed=self.seed,
            recipe=self.recipe,
            validation={name: value.value for name, value in validation.items()},
            training_seconds=round(seconds.value, 1),
            report=read_report(self.folder / METRICS),
            by_time={name: values for name, values in by_time.items() if values},
        )

    def _check_recipe(self) -> None:
        file = self.folder / RECIPE
        if not file.exists() or file.read_text(encoding="utf-8") != self.recipe:
            raise ValueError(
                f"{self.folder} was not begun by what {', '.join(map(str, self.files))} declare now; move it away"
            )


class UnsampledRow(TrainedRow):
    """A run of which no samples are measured: it is at its end with its last step."""

    @property
    def ended(self) -> bool:
        """Whether nothing is left to train."""
        run = Run(self.folder)
        return run.exists() and checkpoints.step_of(checkpoints.newest(run.folder)) == self.steps


def check_rows(names: Sequence[str], known: Collection[str]) -> None:
    """Raises ValueError for a row that there is none of."""
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no rows {unknown}; there are {', '.join(known)}")


def begin_again(run: Run, end: int) -> Path | str:
    """Where an interrupted run goes on: at its newest checkpoint before its end.

    A run at its end has nothing left to do for ``fit``; what was cut off there is validation and samples.
    """
    previous = run.folder / checkpoints.PREVIOUS
    at_end = checkpoints.step_of(checkpoints.newest(run.folder)) == end
    return previous if at_end else "last"


def _by_time(events: EventAccumulator, name: str) -> dict[str, float]:
    """The last of each of BinnedMean's tags, which end in the time where a part begins."""
    start = f"val_{name}_by_t/"
    tags = sorted(tag for tag in events.Tags()["scalars"] if tag.startswith(start))
    return {tag.removeprefix(start): events.Scalars(tag)[-1].value for tag in tags}
