"""Several metrics over the same images, with the controls that their values are read against."""

from collections.abc import Sequence

import torch
from torch import Tensor

from snapgen_pl.metrics.sample_metric import Facts, FeatureSet, SampleMetric, Score


class Comparison:
    """Feeds the same images to every metric.

    Args:
        metrics: what to measure; no two may use one network.
    """

    def __init__(self, metrics: list[SampleMetric]) -> None:
        names = [metric.network for metric in metrics]
        if not metrics or len(set(names)) < len(names):
            raise ValueError(f"metrics take the features of {names}; give at least one, each once")
        self.metrics = metrics
        self.has_references = not self.needs_references

    @property
    def needs_references(self) -> bool:
        """Whether a metric's reference is to be made of training images."""
        return not all(metric.brings_reference for metric in self.metrics)

    def check_count(self, what: str, count: int) -> None:
        """Raises ValueError where ``count`` images, called ``what`` in configs, are too few for a metric."""
        for metric in self.metrics:
            if count < metric.least_images:
                raise ValueError(
                    f"{what} is {count}, too few for {metric.network}, which takes {metric.least_images} or more; "
                    f"raise {what} or let the metric take fewer"
                )

    def prepare(self, device: torch.device) -> None:
        """Loads the metrics' networks onto a device."""
        for metric in self.metrics:
            metric.prepare(device)

    def open_references(self) -> None:
        """Reads the references that metrics bring; the comparing process alone needs them."""
        for metric in self.metrics:
            metric.open_reference()

    def protocol(self) -> Facts:
        """What values depend on besides the images, by network."""
        return {metric.network: metric.protocol() for metric in self.metrics}

    def features(self, image_BCHW: Tensor, asked: Sequence[str] = ()) -> dict[str, Tensor]:
        """All networks' features; see SampleMetric.features."""
        return {name: value for metric in self.metrics for name, value in metric.features(image_BCHW, asked).items()}

    def set_references(self, features: FeatureSet) -> None:
        """Gives the reference set to the metrics that bring none."""
        for metric in self.metrics:
            if not metric.brings_reference:
                metric.set_reference(features)
        self.has_references = True

    def measure(self, features: FeatureSet) -> dict[str, Score]:
        """The values of a set of images."""
        return {name: score for metric in self.metrics for name, score in metric.measure(features).items()}
