"""Encodes images once, so that training need not: wiring only."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import lightning as L
import torch
from torch import Tensor

from snapgen_pl.autoencoders.autoencoder import Autoencoder, Posterior, combined
from snapgen_pl.data.encoding_data import EncodingData, encoding_data
from snapgen_pl.data.latents import FORMAT, LatentFacts, latent_tensors
from snapgen_pl.data.shards import Plan
from snapgen_pl.data.source import ImageBatch
from snapgen_pl.images import from_uint8
from snapgen_pl.modules.frozen import Frozen, make_ready


class Encode(L.LightningModule):
    """Predicts the posterior over raw latents of each image, and of its mirror image.

    Args:
        autoencoder: what encodes.
        flips: whether to encode mirror images too, for training with ``data.flip``: twice the time and room.
        dtype: what means and standard deviations are stored in.

    Attributes:
        folder: what the shards' folder is called.
    """

    folder = "latents"

    def __init__(
        self, autoencoder: Autoencoder, flips: bool = True, dtype: Literal["float16", "float32"] = "float16"
    ) -> None:
        super().__init__()
        self._autoencoder = Frozen(autoencoder)
        self.flips, self.dtype_stored = flips, dtype

    @property
    def autoencoder(self) -> Autoencoder:
        """The frozen autoencoder."""
        return self._autoencoder.module

    def plan(self) -> Plan:
        """What is to be encoded; makes the autoencoder ready.

        Raises:
            ValueError: where the images do not divide into the autoencoder's latents.
        """
        data = self._data()
        if data.image_size % self.autoencoder.downsampling:
            raise ValueError(
                f"data.image_size {data.image_size} is not a multiple of the autoencoder's "
                f"{self.autoencoder.downsampling}"
            )
        make_ready(self.trainer, lambda folder: [self.autoencoder.ready(folder, data.training_images(256))])
        facts = LatentFacts(
            self.autoencoder.identity(),
            data.image_size,
            2 if self.flips else 1,
            self.dtype_stored,
            data.source.classes,
        )
        return data.plan(FORMAT, facts.as_json())

    def shard(self, predictions: Sequence[Posterior], positions: range) -> dict[str, Tensor]:
        """The tensors of a shard, of the predictions of its batches, in order."""
        images = self._data().images
        labels = images.labels[positions.start : positions.stop]
        return latent_tensors(combined(predictions, torch.cat), self.dtype_stored, labels, images.captions(positions))

    def predict_step(self, batch: ImageBatch, batch_idx: int) -> Posterior:
        """Mean and standard deviation (B, flips, C, H, W)."""
        with torch.autocast(self.device.type, enabled=False):
            autoencoder = self.autoencoder.to(self.device)
            image_BCHW = from_uint8(batch.image_BCHW)
            views = [image_BCHW, image_BCHW.flip(-1)] if self.flips else [image_BCHW]
            posteriors = [autoencoder.encode(view) for view in views]
        return combined(posteriors, partial(torch.stack, dim=1))

    def _data(self) -> EncodingData:
        return encoding_data(self.trainer, "image")
