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

    @property
    def needs_requests(self) -> bool:
        """Whether a metric holds images against what they were drawn for."""
        return any(metric.needs_requests for metric in self.metrics)

    def check_requests(self, asked: Sequence[str]) -> None:
        """Raises ValueError where a metric cannot judge images of such requests."""
        for metric in self.metrics:
            metric.check_requests(asked)

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
        """The features of all networks that such images are for; see SampleMetric.features."""
        found = (metric.features(image_BCHW, asked) for metric in self._measuring(drawn=bool(asked)))
        return {name: value for features in found for name, value in features.items()}

    def set_references(self, features: FeatureSet) -> None:
        """Gives the reference set to the metrics that bring none."""
        for metric in self.metrics:
            if not metric.brings_reference:
                metric.set_reference(features)
        self.has_references = True

    def measure(self, features: FeatureSet, drawn: bool = True) -> dict[str, Score]:
        """The values of a set of images.

        Args:
            features: of :meth:`features`.
            drawn: whether they were asked for.
        """
        return {name: score for metric in self._measuring(drawn) for name, score in metric.measure(features).items()}

    def controls(self) -> dict[str, dict[str, Score]]:
        """The controls that metrics bring, by name."""
        found: dict[str, dict[str, Score]] = {}
        for metric in self.metrics:
            for control, scores in metric.controls().items():
                found.setdefault(control, {}).update(scores)
        return found

    def _measuring(self, drawn: bool) -> list[SampleMetric]:
        return [metric for metric in self.metrics if drawn or not metric.needs_requests]
