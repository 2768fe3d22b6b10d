"""What a validation tells of decoded images."""

from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.image.fid import FrechetInceptionDistance

from snapgen_pl.images import to_uint8
from snapgen_pl.metrics.inception import Inception
from snapgen_pl.metrics.lpips import LPIPS
from snapgen_pl.metrics.reconstruction import reconstruction

_WIDTH = 2048  # of Inception's pooled features


class ReconstructionMeans:
    """The means over a validation's images, by name, until they are logged; with Inception, also their rFID.

    rFID is the Frechet distance between features of the decoded images and of the originals, each whole. It depends on
    how many there are, so it is named ``rfid@N``.

    Args:
        inception: torch-fidelity's file of Inception weights; None leaves rFID out.
    """

    def __init__(self, inception: Path | None = None) -> None:
        self._weights = inception
        self._inception: Inception | None = None
        self._means: dict[str, MeanMetric] = {}
        self._distances: dict[str, FrechetInceptionDistance] = {}

    def ready(self, device: torch.device, images: int) -> None:
        """Loads Inception, where it is asked for.

        Args:
            device: of the images.
            images: in a validation.

        Raises:
            ValueError: where the weights cannot be read, or are for a single image.
        """
        if self._weights is None:
            return
        if images < 2:
            raise ValueError(f"rFID compares sets, the validation has {images} image; hold out 2 or more")
        self._inception = self._inception or Inception(self._weights)
        self._inception.to(device)

    def update(self, decoded_BCHW: Tensor, target_BCHW: Tensor, lpips: LPIPS | None, suffix: str = "") -> None:
        """Measures a batch.

        Args:
            decoded_BCHW: about [-1, 1], as decoded; measured as bytes.
            target_BCHW: uint8 RGB.
            lpips: as in :func:`~snapgen_pl.metrics.reconstruction.reconstruction`.
            suffix: of the names.
        """
        image_BCHW = to_uint8(decoded_BCHW)
        for name, value_B in reconstruction(image_BCHW, target_BCHW, lpips).items():
            mean = self._means.setdefault(f"{name}{suffix}", MeanMetric().to(target_BCHW.device))
            mean.update(value_B)
        if self._inception is not None:
            distance = self._distances.setdefault(suffix, _distance(target_BCHW.device))
            for images, real in ((target_BCHW, True), (image_BCHW, False)):
                distance.update(self._inception(images).pool_BD, real)

    def log(self, module: L.LightningModule) -> None:
        """Logs each as ``val/<name>``, over all processes, and forgets them."""
        values = {name: mean.compute() for name, mean in self._means.items()}
        for suffix, distance in self._distances.items():
            value = distance.compute()
            # How many all processes have seen is known once they are brought together, which compute() undoes.
            with distance.sync_context():
                values[f"rfid{suffix}@{int(distance.real_features_num_samples)}"] = value
        for name, value in values.items():
            module.log(f"val/{name}", value, prog_bar=name == "psnr", rank_zero_only=True)
        self._means, self._distances = {}, {}


def _distance(device: torch.device) -> FrechetInceptionDistance:
    """Between features, in float64: extraction is not the metric's, so that its network returns them as they are."""
    features = nn.Identity()
    features.num_features = _WIDTH  # type: ignore[assignment]
    return FrechetInceptionDistance(features).to(device)
