"""Measures the images that a run draws, and says what the number is to be read against."""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Literal

import lightning as L
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console
from rich.table import Table
from torch import Tensor

from callbacks.sample_measurement import Draw, SampleMeasurement
from callbacks.sampling import (
    NowAndThen,
    drawing_module,
    ended_early,
    image_data,
    logged_step,
    prompt_data,
    samples_folder,
)
from snapgen_pl.at_least import check_at_least
from snapgen_pl.data.datamodule import ImageData
from snapgen_pl.data.prompt_data import PromptData
from snapgen_pl.flow.guidance import Guidance
from snapgen_pl.flow.samplers import Sampler
from snapgen_pl.metrics.comparison import Comparison
from snapgen_pl.metrics.draws import LabelPolicy
from snapgen_pl.metrics.image_sets import write_npz, write_pictures
from snapgen_pl.metrics.sample_metric import SampleMetric, Score
from snapgen_pl.metrics.sample_report import SampleReport, read_report


class SampleMetrics(NowAndThen):
    """Draws samples from the EMA weights and measures them against reference images.

    At the end of a run that was not stopped early, at validations that fall due, and on ``test``. Samples have the same
    labels and noise each time, so values compare over a run and between runs. Where the reference is made of training
    images, the values of controls stand beside them: training images that are not among the references, as they are
    (``real``: what a perfect model would get), and reduced to 16 and 8 pixels and back. They are measured once and
    logged as ``<metric>/<control>``.

    Writes a :class:`~snapgen_pl.metrics.sample_report.SampleReport` in the run's folder, ``metrics.json``; on ``test``,
    one in ``reports`` for each sampler and guidance. A killed ``test`` goes on where it was, and what has a report is
    not drawn again.

    Args:
        metrics: what to measure.
        samples: images to draw.
        test_samples: images to draw on ``test``.
        batch_size: images drawn at once by each process.
        references: at most so many training images are compared with.
        control_images: training images set aside as controls; 0 measures none.
        every_n_images: measure at validations when so many images were trained on since the last time; 0 at every
            validation, null at the end only.
        labels: what is asked for: classes as frequent as in training, or captions of training images; uniform classes,
            as ImageNet's protocol has them; what held-out images have, in their order; or the prompts of a PromptData,
            in theirs.
        samplers: on ``test``, each of these in place of the module's.
        guidances: on ``test``, each of these in place of the module's, under each sampler.
        keep: on ``test``, keeps the images under ``samples`` too: as PNG files, or as ADM's npz.
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
        labels: LabelPolicy = "frequencies",
        samplers: Sequence[Sampler] = (),
        guidances: Sequence[Guidance] = (),
        keep: Literal["png", "npz"] | None = None,
    ) -> None:
        check_at_least(1, batch_size=batch_size)
        super().__init__(every_n_images)
        self.samples, self.test_samples = samples, test_samples
        self.references, self.control_images = references, control_images
        self.labels, self.samplers, self.guidances, self.keep = labels, samplers, guidances, keep
        self._comparison = Comparison(metrics)
        self._measurement = SampleMeasurement(self._comparison, batch_size, references, control_images)
        self._latest: SampleReport | None = None

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
        data = getattr(trainer, "datamodule", None)
        texts = isinstance(data, PromptData) or (isinstance(data, ImageData) and data.condition == "caption")
        if self.labels == "uniform" and texts:
            raise ValueError("labels are uniform, which is of classes, but the data give texts; set labels to "
                             "frequencies, held_out or, with a PromptData, prompts")  # fmt: skip
        if self.labels == "prompts" and (count := prompt_data(trainer).samples) != self.test_samples:
            raise ValueError(
                f"test_samples is {self.test_samples}, but the data ask for {count} images; set test_samples to that, "
                "or data.images or data.prompts to others"
            )
        if self.labels in ("frequencies", "held_out") or self._comparison.needs_references:
            image_data(trainer)
        if self._comparison.needs_references:
            if self.control_images:
                self._comparison.check_count("control_images", self.control_images)
            left = len(image_data(trainer).source.train) - self.control_images
            self._comparison.check_count("references (training images less control_images)", min(self.references, left))
        self._comparison.prepare(pl_module.device)
        self._measurement.check_requests(
            trainer, Draw(self.samples if stage == "fit" else self.test_samples, self.labels)
        )
        if trainer.is_global_zero:
            self._comparison.open_references()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measures, unless the last validation just did, and reports."""
        if ended_early(trainer):
            rank_zero_info("Stopped before the last step: samples are not measured; `test` can do it")
            return
        if self._latest is None or self._last != drawing_module(pl_module).images_seen:
            self._now(trainer, pl_module)
        assert self._latest is not None
        path = Path(trainer.default_root_dir) / "metrics.json"
        if trainer.is_global_zero:
            self._latest.write(path)
            show({path: self._latest})

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measures ``test_samples`` samples with each sampler and guidance, and reports."""
        reports: dict[Path, SampleReport] = {}
        samplers: Sequence[Sampler | None] = self.samplers or [None]
        guidances: Sequence[Guidance | None] = self.guidances or [None]
        for sampler, guidance in product(samplers, guidances):
            path, report = self._test(trainer, Draw(self.test_samples, self.labels, sampler, guidance))
            reports[path] = report
        if len(reports) == 1:
            pl_module.log_dict(scalars(report), rank_zero_only=True)
        if trainer.is_global_zero:
            show(reports)

    def _test(self, trainer: L.Trainer, draw: Draw) -> tuple[Path, SampleReport]:
        plan = self._measurement.plan(trainer, draw)
        path = Path(trainer.default_root_dir) / "reports" / f"{plan.name}.json"
        images = samples_folder(trainer) / (f"{plan.name}.npz" if self.keep == "npz" else plan.name)
        done = path.exists() and (self.keep is None or images.exists())
        if trainer.strategy.broadcast(done):
            rank_zero_info(f"{path}: measured before, with these very weights and settings")
            return path, read_report(path)

        def finish(report: SampleReport, batches: Iterator[Tensor]) -> None:
            if self.keep == "npz":
                write_npz(images, draw.count, batches)
            elif self.keep == "png":
                write_pictures(images, batches)
            report.write(path)

        return path, self._measurement.report(trainer, plan, finish, keep_images=self.keep is not None)

    def _now(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module = drawing_module(pl_module)
        first = self._latest is None
        plan = self._measurement.plan(trainer, Draw(self.samples, self.labels))
        self._latest = self._measurement.report(trainer, plan)
        self._last = module.images_seen
        for logger in trainer.loggers:
            logger.log_metrics(scalars(self._latest, controls=first), step=logged_step(trainer))


def scalars(report: SampleReport, controls: bool = True) -> dict[str, float]:
    """A report's values as logged: ``<metric>`` and, where wanted, ``<metric>/<control>``."""
    values = {name: score.value for name, score in report.values.items()}
    for control, scores in report.controls.items() if controls else ():
        values |= {f"{name}/{control}": score.value for name, score in scores.items()}
    return values


def show(reports: dict[Path, SampleReport]) -> None:
    """Prints values side by side, the controls' beside them, and where the reports lie."""
    console = Console()
    first = next(iter(reports.values()))
    shown = Table(title=f"{first.measurement['samples']} samples after {first.weights['images_seen']} images")
    shown.add_column("metric")
    for number in range(1, len(reports) + 1):
        shown.add_column("samples" if len(reports) == 1 else f"({number})", style="bold")
    for control in first.controls:
        shown.add_column(control)
    for name in first.values:
        scores = [report.values[name] for report in reports.values()]
        beside = [controls.get(name) for controls in first.controls.values()]
        shown.add_row(name, *(_format(score) for score in scores), *(_format(score) for score in beside))
    console.print(shown)
    for number, (path, report) in enumerate(reports.items(), start=1):
        console.print(f"({number}) {report.drawing['sampler']}, {report.drawing['guidance']}", soft_wrap=True)
        console.print(f"    {path}", soft_wrap=True)


def _format(score: Score | None) -> str:
    if score is None:
        return ""
    return f"{score.value:.3f}" if score.spread is None else f"{score.value:.3f} ± {score.spread:.3f}"
