"""Samplers of networks that predict noise on a chain of 1000 steps, as DiT and LDM do: DDPM's and DDIM's.

Their time is a step's number, from 999 (noise) to 0. ``kept`` is the share of the data's variance that is left in
x_k = sqrt(kept) data + sqrt(1 - kept) noise, the papers' alpha with a bar.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from snapgen_pl.flow.guidance import Guidance
from snapgen_pl.flow.samplers import StepNoise

CHAIN = 1000

# noise(x_BCHW, k) -> the noise in x, (B, C, H, W); (B, 2C, H, W) where the network predicts its variance too.
NoiseFn = Callable[[Tensor, int], Tensor]
# network(x_BCHW, k, label_B): the same, of labels.
LabelledNoiseFn = Callable[[Tensor, int, Tensor], Tensor]


class Stop(NamedTuple):
    """A step from k to the stop after it.

    Attributes:
        k: what the network is told.
        kept: at k.
        kept_next: where the step leads.
    """

    k: int
    kept: float
    kept_next: float


@dataclass(frozen=True)
class ChainSampler(ABC):
    """Draws latents along some of the 1000 steps.

    Args:
        steps: how many.
    """

    steps: int = 250

    def __post_init__(self) -> None:
        if not 2 <= self.steps <= CHAIN:
            raise ValueError(f"steps is {self.steps}; it must be 2 to {CHAIN}")

    @property
    def network_calls(self) -> int:
        """Predictions asked for a batch; where guidance acts, each is one forward of twice the batch."""
        return self.steps

    @abstractmethod
    def stops(self) -> list[Stop]:
        """The steps, from noise to data."""

    def __call__(self, noise: NoiseFn, noise_BCHW: Tensor, step_noise: StepNoise) -> Tensor:
        """Draws latents from standard normal ``noise_BCHW``; fresh noise a step comes of ``step_noise``."""
        x_BCHW = noise_BCHW
        for step, stop in enumerate(self.stops()):
            x_BCHW = self._step(noise(x_BCHW, stop.k), x_BCHW, stop, partial(step_noise, step))
        return x_BCHW

    @abstractmethod
    def _step(self, predicted: Tensor, x: Tensor, stop: Stop, draw: Callable[[], Tensor]) -> Tensor:
        """The state at the next stop; ``draw`` gives this step's noise."""


@dataclass(frozen=True)
class DDPM(ChainSampler):
    """Ancestral sampling with a learned variance (Nichol and Dhariwal, 2021), which DiT's published numbers take.

    The schedule is linear; the stops lie evenly between 0 and 999, ends included, as in ADM's and DiT's code.
    """

    def stops(self) -> list[Stop]:
        """See ChainSampler.stops."""
        kept = linear_schedule()
        ks = [round((CHAIN - 1) * step / (self.steps - 1)) for step in reversed(range(self.steps))]
        levels = [*(kept[k] for k in ks), 1.0]
        return [Stop(k, now, then) for k, (now, then) in zip(ks, pairwise(levels), strict=True)]

    def _step(self, predicted: Tensor, x: Tensor, stop: Stop, draw: Callable[[], Tensor]) -> Tensor:
        if predicted.shape[1] != 2 * x.shape[1]:
            raise ValueError(
                f"the network predicts {predicted.shape[1]} channels for latents of {x.shape[1]}; DDPM needs its "
                "variances too"
            )
        noise, fraction = predicted.chunk(2, dim=1)
        _, kept, kept_next = stop
        beta = 1 - kept / kept_next
        data = (x - math.sqrt(1 - kept) * noise) / math.sqrt(kept)
        mean = (math.sqrt(kept_next) * beta * data + math.sqrt(kept / kept_next) * (1 - kept_next) * x) / (1 - kept)
        if kept_next == 1:
            return mean
        # log sigma^2 lies between the posterior's variance and beta, where the network says: -1 to 1.
        low, high = math.log((1 - kept_next) / (1 - kept) * beta), math.log(beta)
        log_variance = low + (fraction + 1) / 2 * (high - low)
        return mean + torch.exp(log_variance / 2) * draw()


@dataclass(frozen=True)
class DDIM(ChainSampler):
    """DDIM (Song et al., 2021) as LDM's code takes it.

    The schedule is root-linear; the stops are 1, 1 + 1000 / steps, ..., and the last step leads to what is kept at 0.

    Args:
        steps: a divisor of 1000.
        eta: 0 is deterministic, 1 has DDPM's posterior variance.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if CHAIN % self.steps:
            raise ValueError(f"steps is {self.steps}; it must divide {CHAIN}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta is {self.eta}; it must lie in [0, 1]")

    def stops(self) -> list[Stop]:
        """See ChainSampler.stops."""
        kept = root_linear_schedule()
        stride = CHAIN // self.steps
        return [Stop(k, kept[k], kept[max(0, k - stride)]) for k in range(CHAIN - stride + 1, 0, -stride)]

    def _step(self, predicted: Tensor, x: Tensor, stop: Stop, draw: Callable[[], Tensor]) -> Tensor:
        _, kept, kept_next = stop
        sigma = self.eta * math.sqrt((1 - kept_next) / (1 - kept) * (1 - kept / kept_next))
        data = (x - math.sqrt(1 - kept) * predicted) / math.sqrt(kept)
        mean = math.sqrt(kept_next) * data + math.sqrt(1 - kept_next - sigma**2) * predicted
        return mean + sigma * draw() if sigma > 0 else mean


def linear_schedule() -> list[float]:
    """What is kept at each k where betas rise linearly from 1e-4 to 0.02: DDPM's and DiT's."""
    return _kept(torch.linspace(1e-4, 0.02, CHAIN, dtype=torch.float64))


def root_linear_schedule() -> list[float]:
    """What is kept at each k where the roots of betas rise linearly from sqrt(0.0015) to sqrt(0.0195): LDM's."""
    return _kept(torch.linspace(math.sqrt(0.0015), math.sqrt(0.0195), CHAIN, dtype=torch.float64).square())


def _kept(betas: Tensor) -> list[float]:
    kept: list[float] = (1 - betas).cumprod(0).tolist()
    return kept


def guided_noise(network: LabelledNoiseFn, label_B: Tensor, no_label: int, guidance: Guidance) -> NoiseFn:
    """Classifier-free guidance of the predicted noise; variances stay the conditional ones.

    Args:
        network: predicts noise, in fp32 or less.
        label_B: labels of the samples.
        no_label: the label that stands for none.
        guidance: its interval counts k / 1000.
    """

    def noise(x_BCHW: Tensor, k: int) -> Tensor:
        if guidance.scale == 1 or not guidance.acts_at(k / CHAIN):
            return network(x_BCHW, k, label_B).to(x_BCHW.dtype)
        both_B = torch.cat((label_B, torch.full_like(label_B, no_label)))
        conditional, unconditional = network(x_BCHW.repeat(2, 1, 1, 1), k, both_B).to(x_BCHW.dtype).chunk(2)
        channels = x_BCHW.shape[1]
        guided_BCHW = guidance.combine(conditional[:, :channels], unconditional[:, :channels])
        return torch.cat((guided_BCHW, conditional[:, channels:]), dim=1)

    return noise
