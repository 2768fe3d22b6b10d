"""Several metrics over one reference set, with the controls that their values are read against."""

from collections.abc import Iterable

import torch
from torch import Tensor

from snapgen_pl.metrics.controls import CONTROLS
from snapgen_pl.metrics.sample_metric import SampleMetric, Score


class Comparison:
    """Feeds the same images to every metric.

    Args:
        metrics: what to measure; names must differ.

    Attributes:
        controls: by metric and control, once :meth:`set_references` ran with control images.
    """

    def __init__(self, metrics: list[SampleMetric]) -> None:
        names = [metric.name for metric in metrics]
        if not metrics or len(set(names)) < len(names):
            raise ValueError(f"metrics are {names}; give at least one, each once")
        self.metrics = metrics
        self.controls: dict[str, dict[str, Score]] = {name: {} for name in names}
        self.has_references = False

    def check_count(self, what: str, count: int) -> None:
        """Raises ValueError where ``count`` images, called ``what`` in configs, are too few for a metric."""
        for metric in self.metrics:
            if count < metric.least_images:
                raise ValueError(
                    f"{what} is {count}, too few for {metric.name}, which takes {metric.least_images} or more; "
                    f"raise {what} or let the metric take fewer"
                )

    def prepare(self, device: torch.device) -> None:
        """Loads the metrics' networks onto a device."""
        for metric in self.metrics:
            metric.prepare(device)

    def set_references(self, references: Iterable[Tensor], controls: Iterable[Tensor]) -> None:
        """Takes the reference set, and measures the controls against it.

        Args:
            references: batches of uint8 images (B, 3, H, W), this process's part.
            controls: likewise, of images that are not references; nothing is measured where there are none.
        """
        for batch in references:
            for metric in self.metrics:
                metric.add_reference(batch)
        self.has_references = True
        batches = list(controls)
        for control in CONTROLS if batches else ():
            for name, score in self.measure(control.degrade(batch) for batch in batches).items():
                self.controls[name][control.name] = score

    def measure(self, batches: Iterable[Tensor]) -> dict[str, Score]:
        """The distances of a set of images, given as :meth:`set_references` takes them, by metric."""
        for batch in batches:
            for metric in self.metrics:
                metric.add(batch)
        scores = {metric.name: metric.compute() for metric in self.metrics}
        for metric in self.metrics:
            metric.clear()
        return scores
