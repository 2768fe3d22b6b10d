"""Drawers whose network predicts noise on a chain of 1000 steps."""

from abc import abstractmethod

from torch import Tensor

from snapgen_pl.flow.guidance import Guidance
from snapgen_pl.flow.samplers import StepNoise
from snapgen_pl.released.diffusion import ChainSampler, guided_noise
from snapgen_pl.released.drawer import Drawer


class ChainDrawer(Drawer):
    """Samples along the chain. The label after the last class stands for none."""

    sampler: ChainSampler

    def _sampled(self, label_B: Tensor, noise_BCHW: Tensor, step_noise: StepNoise, guidance: Guidance) -> Tensor:
        noise = guided_noise(self._predicted, label_B, self.num_classes, guidance)
        return self.sampler(noise, noise_BCHW, step_noise)

    @abstractmethod
    def _predicted(self, x_BCHW: Tensor, k: int, label_B: Tensor) -> Tensor:
        """The noise in x at step k, (B, C, H, W); (B, 2C, H, W) where the network predicts its variance too."""
