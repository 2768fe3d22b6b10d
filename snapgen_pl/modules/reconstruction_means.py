"""What a validation tells of decoded images."""

import lightning as L
from torch import Tensor
from torchmetrics import MeanMetric

from snapgen_pl.images import to_uint8
from snapgen_pl.metrics.lpips import LPIPS
from snapgen_pl.metrics.reconstruction import reconstruction


class ReconstructionMeans:
    """The means over a validation's images, by name, until they are logged."""

    def __init__(self) -> None:
        self._means: dict[str, MeanMetric] = {}

    def update(self, decoded_BCHW: Tensor, target_BCHW: Tensor, lpips: LPIPS | None, suffix: str = "") -> None:
        """Measures a batch.

        Args:
            decoded_BCHW: about [-1, 1], as decoded; measured as bytes.
            target_BCHW: uint8 RGB.
            lpips: as in :func:`~snapgen_pl.metrics.reconstruction.reconstruction`.
            suffix: of the names.
        """
        for name, value_B in reconstruction(to_uint8(decoded_BCHW), target_BCHW, lpips).items():
            mean = self._means.setdefault(f"{name}{suffix}", MeanMetric().to(target_BCHW.device))
            mean.update(value_B)

    def log(self, module: L.LightningModule) -> None:
        """Logs each as ``val/<name>``, over all processes, and forgets them."""
        for name, mean in self._means.items():
            module.log(f"val/{name}", mean.compute(), prog_bar=name == "psnr", rank_zero_only=True)
        self._means = {}
