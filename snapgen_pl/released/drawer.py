"""The contract of what draws class-conditional images from weights that others published."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from snapgen_pl.conditioning.condition import labels
from snapgen_pl.data.requests import Request
from snapgen_pl.flow.guidance import Guidance
from snapgen_pl.flow.noise import initial_noise, step_noise
from snapgen_pl.flow.samplers import NamedSampler, StepNoise
from snapgen_pl.images import to_uint8


class DrawerFacts(NamedTuple):
    """What a measured number depends on, for reports.

    Attributes:
        network: the drawer's class.
        weights: SHA-256 over the weights as read.
        sampler: the sampler and its settings.
        network_calls: evaluations an image; where guidance acts, each is of twice the batch.
        guidance: scale, interval, channels.
        decoder: what made pixels of latents.
        decoder_weights: SHA-256 over its weights.
    """

    network: str
    weights: str
    sampler: str
    network_calls: int
    guidance: str
    decoder: str
    decoder_weights: str


class Decoder(NamedTuple):
    """What makes pixels of latents.

    Attributes:
        name: its class.
        weights: SHA-256 over its weights.
    """

    name: str
    weights: str


class Drawer(nn.Module, ABC):
    """Draws images of classes. Constructing one is quick; :meth:`ready` reads the weights.

    Args:
        image_size: side of the images, in pixels.
        num_classes: labels are 0 to num_classes - 1.
        guidance: how the sampler is guided.

    Attributes:
        sampler: how latents are drawn.
    """

    sampler: NamedSampler

    def __init__(self, image_size: int, num_classes: int, guidance: Guidance) -> None:
        super().__init__()
        self.image_size, self.num_classes, self.guidance = image_size, num_classes, guidance
        self._weights = ""  # their SHA-256, once they are read

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one latent."""

    @abstractmethod
    def ready(self, folder: Path) -> list[str]:
        """Reads the weights, once.

        Args:
            folder: the run's.

        Returns:
            Lines for the user.

        Raises:
            ValueError: naming the file and what is missing, foreign or misshapen in it.
        """

    def describe(self) -> DrawerFacts:
        """What its images depend on, by its own guidance; known once it is ready."""
        decoder = self._decoder()
        return DrawerFacts(
            network=type(self).__name__,
            weights=self._weights,
            sampler=repr(self.sampler),
            network_calls=self.sampler.network_calls,
            guidance=repr(self.guidance),
            decoder=decoder.name,
            decoder_weights=decoder.weights,
        )

    @torch.no_grad()
    def draw(self, seed: int, request: Request, guidance: Guidance | None = None) -> Tensor:
        """Draws images; noise depends on (seed, position) alone, whatever the batch or the process.

        Args:
            seed: in [0, 2^48).
            request: on the device of the weights.
            guidance: in place of the drawer's.

        Returns:
            uint8 (B, 3, image_size, image_size).

        Raises:
            ValueError: for a label that there is no class of.
        """
        label_B, position_B = labels(request.condition), request.position_B
        if len(label_B) and not 0 <= int(label_B.min()) <= int(label_B.max()) < self.num_classes:
            raise ValueError(f"labels must lie in 0 to {self.num_classes - 1}, the classes of {type(self).__name__}")
        noise_BCHW = initial_noise(seed, position_B, self.latent_shape)
        noise_of_step = step_noise(seed, position_B, self.latent_shape)
        latent_BCHW = self._sampled(label_B, noise_BCHW, noise_of_step, guidance or self.guidance)
        # The decoder has a precision of its own, whatever the network runs in.
        with torch.autocast(latent_BCHW.device.type, enabled=False):
            return to_uint8(self._decoded(latent_BCHW.float()))

    @abstractmethod
    def _sampled(self, label_B: Tensor, noise_BCHW: Tensor, step_noise: StepNoise, guidance: Guidance) -> Tensor:
        """Latents of classes, from noise."""

    @abstractmethod
    def _decoded(self, latent_BCHW: Tensor) -> Tensor:
        """Images (B, 3, H, W), about [-1, 1], of latents as the network knows them."""

    @abstractmethod
    def _decoder(self) -> Decoder:
        """What ``_decoded`` decodes with."""
