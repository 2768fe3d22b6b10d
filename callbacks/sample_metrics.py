"""Measures the images that a run draws, and says what the number is to be read against."""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import lightning as L
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console
from rich.table import Table
from torch import Tensor

from callbacks.sampling import (
    Cadence,
    between_steps,
    drawing,
    drawing_module,
    ended_early,
    image_data,
    logged_step,
    training_images,
    weights_name,
)
from snapgen_pl.data.source import LabelBatch
from snapgen_pl.metrics.comparison import Comparison
from snapgen_pl.metrics.draws import disjoint, proportional, share
from snapgen_pl.metrics.sample_metric import SampleMetric, Score
from snapgen_pl.whole_files import write_json

_SECONDS_BETWEEN_NOTICES = 10.0


@dataclass(frozen=True)
class Measured:
    """One metric of one set of samples.

    Attributes:
        score: of the samples.
        controls: of images of known quality, by name.
        protocol: what the metric alone depends on.
    """

    score: Score
    controls: dict[str, Score]
    protocol: dict[str, int | float | str]


@dataclass(frozen=True)
class Record:
    """What ``metrics.json`` holds: values, and all that they depend on.

    Attributes:
        images_seen: images trained on.
        samples: how many were drawn.
        seconds: what drawing, decoding and measuring them took.
        labels: how their classes were chosen.
        seed: what their noise was drawn from, at positions 0 ... samples - 1.
        sampler: the module's.
        guidance: the module's.
        weights: those that were drawn from.
        references: training images compared with.
        control_images: further training images, which the controls are made of.
        data: the fingerprint of the data.
        metrics: by name.
    """

    images_seen: int
    samples: int
    seconds: float
    labels: str
    seed: int
    sampler: str
    guidance: str
    weights: str
    references: int
    control_images: int
    data: str
    metrics: dict[str, Measured]


class SampleMetrics(L.Callback):
    """Draws samples from the EMA weights and measures them against training images.

    At the end of a run that was not stopped early, at validations that fall due, and on ``test``. Samples have the
    training set's class frequencies, and the same labels and noise each time, so values compare over a run and between
    runs. Beside them stand the values of controls: training images that are not among the references, as they are
    (``real``: what a perfect model would get), and reduced to 16 and 8 pixels and back. They are measured once and
    logged as ``<metric>/<control>``.

    Writes ``metrics.json`` in the run's folder; on ``test``, ``metrics-test.json``.

    Args:
        metrics: what to measure.
        samples: images to draw.
        test_samples: images to draw on ``test``.
        batch_size: images drawn at once by each process.
        references: at most so many training images are compared with.
        control_images: training images set aside as controls; 0 measures none.
        every_n_images: measure at validations when so many images were trained on since the last time; 0 at every
            validation, null at the end only.
    """

    def __init__(
        self,
        metrics: list[SampleMetric],
        samples: int = 500,
        test_samples: int = 5_000,
        batch_size: int = 100,
        references: int = 10_000,
        control_images: int = 500,
        every_n_images: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; give at least 1")
        self.samples, self.test_samples, self.batch_size = samples, test_samples, batch_size
        self.references, self.control_images = references, control_images
        self._comparison = Comparison(metrics)
        self._cadence = Cadence(every_n_images)
        self._latest: Record | None = None

    def state_dict(self) -> dict[str, int]:
        """When it last measured."""
        return {"images_seen": self._cadence.last}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Takes up the cadence."""
        self._cadence.last = state_dict["images_seen"]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Loads the metrics' networks and checks that there will be images enough, before anything is trained.

        Raises:
            ValueError: naming what is too few, or the package to install.
        """
        if stage not in ("fit", "test"):
            return
        drawing_module(pl_module)
        if stage == "fit":
            self._comparison.check_count("samples", self.samples)
        else:
            self._comparison.check_count("test_samples", self.test_samples)
        if self.control_images:
            self._comparison.check_count("control_images", self.control_images)
        left = len(image_data(trainer).source.train) - self.control_images
        self._comparison.check_count("references (training images less control_images)", min(self.references, left))
        self._comparison.prepare(pl_module.device)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measures, if it is time."""
        if between_steps(trainer) and self._cadence.due(drawing_module(pl_module).images_seen):
            self._measure_and_log(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measures, unless the last validation just did, and reports."""
        if ended_early(trainer):
            rank_zero_info("Stopped before the last step: samples are not measured; `test` can do it")
            return
        if self._latest is None or self._latest.images_seen != drawing_module(pl_module).images_seen:
            self._measure_and_log(trainer, pl_module)
        self._report(trainer, "metrics.json")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measures ``test_samples`` samples and reports."""
        record = self._measure(trainer, pl_module, self.test_samples)
        pl_module.log_dict(scalars(record), rank_zero_only=True)
        self._report(trainer, "metrics-test.json")

    def _measure_and_log(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        first = not self._comparison.has_references
        values = scalars(self._measure(trainer, pl_module, self.samples), controls=first)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=logged_step(trainer))

    def _measure(self, trainer: L.Trainer, pl_module: L.LightningModule, count: int) -> Record:
        module, data = drawing_module(pl_module), image_data(trainer)
        controls, references = disjoint(len(data.source.train), (self.control_images, self.references))
        with drawing(trainer, pl_module):
            if not self._comparison.has_references:
                self._comparison.set_references(
                    self._images(trainer, pl_module, references), self._images(trainer, pl_module, controls)
                )
            request = proportional(data.source.train.labels, count)
            began = time.monotonic()
            scores = self._comparison.measure(module.sample(part) for part in _parts(request, self.batch_size, trainer))
        self._cadence.last = module.images_seen
        self._latest = Record(
            images_seen=module.images_seen,
            samples=count,
            seconds=round(time.monotonic() - began, 1),
            labels="the training set's frequencies",
            seed=module.seed,
            sampler=repr(module.sampler),
            guidance=repr(module.guidance),
            weights=weights_name(trainer),
            references=len(references),
            control_images=len(controls),
            data=data.source.fingerprint,
            metrics={
                metric.name: Measured(scores[metric.name], self._comparison.controls[metric.name], metric.protocol())
                for metric in self._comparison.metrics
            },
        )
        return self._latest

    def _images(self, trainer: L.Trainer, pl_module: L.LightningModule, indices: list[int]) -> Iterator[Tensor]:
        """This process's part of these training images."""
        mine = share(len(indices), trainer.global_rank, trainer.world_size)
        module = drawing_module(pl_module)
        for image_BCHW in training_images(image_data(trainer), module, indices[mine.start : mine.stop]):
            yield image_BCHW.to(pl_module.device)

    def _report(self, trainer: L.Trainer, name: str) -> None:
        assert self._latest is not None
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / name
            write_record(self._latest, path)
            console = Console()
            console.print(table(self._latest))
            console.print(f"Written to {path}", soft_wrap=True)


def scalars(record: Record, controls: bool = True) -> dict[str, float]:
    """A record's values as logged: ``<metric>`` and, where wanted, ``<metric>/<control>``."""
    values: dict[str, float] = {}
    for name, measured in record.metrics.items():
        values[name] = measured.score.value
        if controls:
            values |= {f"{name}/{control}": score.value for control, score in measured.controls.items()}
    return values


def table(record: Record) -> Table:
    """The samples' values beside the controls'."""
    shown = Table(title=f"{record.samples} samples after {record.images_seen} images, {record.references} references")
    shown.add_column("metric")
    shown.add_column("samples", style="bold")
    names = list(next(iter(record.metrics.values())).controls)
    for control in names:
        shown.add_column(control)
    for name, measured in record.metrics.items():
        scores = (measured.score, *(measured.controls[control] for control in names))
        shown.add_row(name, *(_format(score) for score in scores))
    return shown


def write_record(record: Record, path: Path) -> None:
    """Writes a record as JSON, whole or not at all."""
    fields = asdict(record)
    for name, measured in record.metrics.items():
        fields["metrics"][name]["score"] = measured.score._asdict()
        fields["metrics"][name]["controls"] = {key: score._asdict() for key, score in measured.controls.items()}
    write_json(fields, path)


def _format(score: Score) -> str:
    return f"{score.value:.3f}" if score.spread is None else f"{score.value:.3f} ± {score.spread:.3f}"


def _parts(request: LabelBatch, batch_size: int, trainer: L.Trainer) -> Iterator[LabelBatch]:
    """This process's part of a request in batches, as many on every process; says now and then how far it is."""
    count, ranks = len(request.label_B), trainer.world_size
    mine = share(count, trainer.global_rank, ranks)
    batches = math.ceil(math.ceil(count / ranks) / batch_size)
    indices: tuple[Tensor, ...] = request.position_B[mine.start : mine.stop].tensor_split(batches)
    noticed, done = time.monotonic(), 0
    for index_B in filter(len, indices):
        yield LabelBatch(request.label_B[index_B], index_B)
        done += len(index_B)
        if time.monotonic() - noticed > _SECONDS_BETWEEN_NOTICES:
            rank_zero_info(f"samples drawn: {done * ranks} of {count}")
            noticed = time.monotonic()
