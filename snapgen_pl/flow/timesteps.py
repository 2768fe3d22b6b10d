"""Which times a network is trained at: densities on (0, 1), and the shift for higher resolutions.

Densities map uniform numbers to times instead of drawing by themselves: the numbers come per sample from
``snapgen_pl.rng``, so a sample meets the same time on any rank, device or resumed run.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

Time = TypeVar("Time", float, Tensor)
_GOLDEN_RATIO = -7046029254386353131  # its fraction, 0.618..., times 2**64, as int64 holds it


def shift_time(t: Time, shift: float) -> Time:
    """t' = s t / (1 + (s - 1) t): moves times towards noise where s > 1 (Esser et al., 2024).

    A larger image averages more pixels, so the same t destroys less of it. The odds t / (1 - t) are multiplied by s:
    shifts compose by product, ends stay, and a shift by 1 / s is the inverse.
    """
    # The denominator written so that t = 1 gives exactly 1 and nothing ever exceeds it.
    return shift * t / (shift * t + (1 - t))


def time_bin(t: Tensor, bins: int) -> Tensor:
    """Which of ``bins`` equal parts of [0, 1] each time lies in, int64; t = 1 lies in the last."""
    return (t * bins).long().clamp(0, bins - 1)


def even_times(position_B: Tensor) -> Tensor:
    """Times in [0, 1) that any run of positions fills evenly: fractions of the golden ratio's multiples.

    In fixed point, for fp32 has no fraction left of a large multiple.

    Args:
        position_B: int64 (B,), at least 0.
    """
    return (position_B * _GOLDEN_RATIO >> 40 & 0xFFFFFF).float() * 2.0**-24


def check_positive(name: str, value: float) -> None:
    """Raises ValueError unless the value is finite and above 0."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value}; it must be a finite number above 0")


class TimestepDistribution(ABC):
    """Which times a network is trained at, and how often."""

    @abstractmethod
    def sample(self, uniform_B: Tensor) -> Tensor:
        """Times (B,) by the inverse of the distribution function, from uniform numbers (B,) in [0, 1)."""


@dataclass(frozen=True)
class TimestepDensity(TimestepDistribution):
    """A probability density of training times.

    Args:
        shift: s of ``shift_time``, applied to the times drawn; 1 at 256 px, more at higher resolutions.
    """

    shift: float = 1.0

    def __post_init__(self) -> None:
        check_positive("shift", self.shift)

    def sample(self, uniform_B: Tensor) -> Tensor:
        """Times (B,) by the inverse of the distribution function, from uniform numbers (B,) in (0, 1)."""
        return shift_time(self._quantile(uniform_B), self.shift)

    def pdf(self, t: Tensor) -> Tensor:
        """The density of what ``sample`` returns, at times of any shape; 0 outside [0, 1]."""
        # Change of variables: p'(t') = p(t) dt/dt', where t = shift_time(t', 1/s).
        inverse = 1 / self.shift
        slope = inverse / (1 + (inverse - 1) * t) ** 2
        return torch.where((t >= 0) & (t <= 1), self._pdf(shift_time(t, inverse)) * slope, 0.0)

    @abstractmethod
    def _quantile(self, uniform: Tensor) -> Tensor:
        """The inverse of the unshifted distribution function."""

    @abstractmethod
    def _pdf(self, t: Tensor) -> Tensor:
        """The unshifted density, for t in [0, 1]."""


@dataclass(frozen=True)
class TimestepGrid(TimestepDistribution):
    """The few times at which a sampler asks its network, each as often as the others.

    Args:
        times: those of a :class:`~snapgen_pl.flow.samplers.Sampler`: falling, 0 last, where nothing is asked any more.
    """

    times: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.times) < 2 or sorted(self.times, reverse=True) != list(self.times) or self.times[-1] != 0:
            raise ValueError(f"times are {self.times}; they must fall from a sampler's first time to 0")

    def sample(self, uniform_B: Tensor) -> Tensor:
        """See TimestepDistribution; 0 is never drawn."""
        steps = len(self.times) - 1
        return _table(self.times, uniform_B.device)[(uniform_B * steps).long().clamp(max=steps - 1)]

    def next(self, t_B: Tensor) -> Tensor:
        """The time (B,) that follows each of the grid's own on the way to 0."""
        rising = _table(self.times[::-1], t_B.device)
        return rising[torch.searchsorted(rising, t_B) - 1]


@lru_cache(maxsize=8)
def _table(times: tuple[float, ...], device: torch.device) -> Tensor:
    # Sent to the device once: a copy each step would have to be waited for.
    return torch.tensor(times, dtype=torch.float32, device=device)


@dataclass(frozen=True)
class Uniform(TimestepDensity):
    """Every time is as likely as any other, before the shift."""

    def _quantile(self, uniform: Tensor) -> Tensor:
        return uniform

    def _pdf(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class LogitNormal(TimestepDensity):
    """logit(t) ~ N(mean, std^2): middle times, the hardest to predict, most often (Esser et al., 2024).

    A shift s is the same as a mean greater by log s. The density vanishes at t = 0 and t = 1.

    Args:
        mean: mean of the logit; above 0 leans to noise.
        std: standard deviation of the logit.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("std", self.std)
        if not math.isfinite(self.mean):
            raise ValueError(f"mean is {self.mean}; it must be a finite number")

    def _quantile(self, uniform: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(uniform))

    def _pdf(self, t: Tensor) -> Tensor:
        z = (torch.logit(t) - self.mean) / self.std
        density = torch.exp(-(z**2) / 2) / (self.std * math.sqrt(2 * math.pi) * t * (1 - t))
        # The formula reads 0 / 0 at the ends; its limit there is 0.
        return torch.where((t > 0) & (t < 1), density, 0.0)
