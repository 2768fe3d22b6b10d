"""From noise to data: solvers of dx = v(x, t) dt from t = 1 to t = 0, and SiT's stochastic one.

A sampler is a grid of times and a rule for one step on it. Times are Python floats, known before the first step, so
nothing here waits for a GPU. The state stays in fp32 (or fp64, if the noise is) whatever the network computes in.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal, Protocol

import torch
from torch import Tensor

from snapgen_pl.flow.timesteps import check_positive, shift_time

# velocity(x_BCHW, t) -> v_BCHW, in the state's type; one time for the whole batch.
VelocityFn = Callable[[Tensor, float], Tensor]
# step_noise(step) -> standard normal numbers like x_BCHW, new ones for each step 0, 1, ...
StepNoise = Callable[[int], Tensor]


_MOST_STEPS = 100_000  # a sampler may come of anybody's file; its times are a list


class NamedSampler(Protocol):
    """What records need of a sampler, besides its ``repr``."""

    @property
    def network_calls(self) -> int:
        """Evaluations of the network an image."""
        ...


@dataclass(frozen=True)
class Sampler(ABC):
    """Integrates a velocity from noise to data.

    Args:
        steps: steps from t = 1 to t = 0, at most 100,000.
        shift: s of ``shift_time``, applied to the grid; the shift of the training density belongs here too.
    """

    steps: int
    shift: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= _MOST_STEPS:
            raise ValueError(f"steps is {self.steps}; a sampler takes 1 to {_MOST_STEPS:,}")
        check_positive("shift", self.shift)

    @property
    def network_calls(self) -> int:
        """Velocities asked for a batch; where guidance acts, each is one forward of twice the batch."""
        return self.steps

    def times(self) -> list[float]:
        """steps + 1 times, falling from 1 to 0."""
        return [shift_time(1 - step / self.steps, self.shift) for step in range(self.steps + 1)]

    def __call__(self, velocity: VelocityFn, noise_BCHW: Tensor, step_noise: StepNoise) -> Tensor:
        """Draws samples.

        Args:
            velocity: v(x, t), often of ``guided_velocity``.
            noise_BCHW: the state at t = 1, standard normal.
            step_noise: fresh noise a step; only stochastic samplers call it.

        Returns:
            data (B, C, H, W), fp32 or wider.
        """
        x_BCHW = noise_BCHW.to(torch.promote_types(noise_BCHW.dtype, torch.float32))
        for step, (t, t_next) in enumerate(pairwise(self.times())):
            x_BCHW = self.step(velocity, x_BCHW, t, t_next, partial(step_noise, step))
        return x_BCHW

    @abstractmethod
    def step(self, velocity: VelocityFn, x: Tensor, t: float, t_next: float, draw: Callable[[], Tensor]) -> Tensor:
        """The state at t_next < t.

        Args:
            velocity: v(x, t), asked as often as the rule needs.
            x: the state at t.
            t: a time of :meth:`times`.
            t_next: the one after it.
            draw: gives this step's noise.
        """


@dataclass(frozen=True)
class Euler(Sampler):
    """First order: follow the tangent. Exact in one step where the flow's lines are straight."""

    def step(self, velocity: VelocityFn, x: Tensor, t: float, t_next: float, draw: Callable[[], Tensor]) -> Tensor:
        """See Sampler.step."""
        return x + (t_next - t) * velocity(x, t)


@dataclass(frozen=True)
class Heun(Sampler):
    """Second order: follow the mean of the tangents at both ends of an Euler step, in 2 steps - 1 network calls.

    The last step is Euler's, as in EDM (Karras et al., 2022): at t = 0 a logit-normal density never trained a network.
    """

    @property
    def network_calls(self) -> int:
        """Two a step, but one in the last."""
        return 2 * self.steps - 1

    def step(self, velocity: VelocityFn, x: Tensor, t: float, t_next: float, draw: Callable[[], Tensor]) -> Tensor:
        """See Sampler.step."""
        h = t_next - t
        v = velocity(x, t)
        euler = x + h * v
        return euler if t_next == 0 else x + h * (v + velocity(euler, t_next)) / 2


@dataclass(frozen=True)
class Renoising(Sampler):
    """Guess the data, and noise the guess anew to the next time: (1 - t') data + t' noise, with fresh noise a step.

    What a few-step generator was trained to see, for its guess stands at x_t whatever the noise that led there
    (Song et al., 2023, "multistep consistency sampling"). The last guess is the sample.
    """

    def step(self, velocity: VelocityFn, x: Tensor, t: float, t_next: float, draw: Callable[[], Tensor]) -> Tensor:
        """See Sampler.step."""
        data = x - t * velocity(x, t)  # The data end of the line, as in path.data_from_velocity.
        return data if t_next == 0 else (1 - t_next) * data + t_next * draw()


@dataclass(frozen=True)
class SDE(Sampler):
    """SiT's stochastic sampler (Ma et al., 2024): the reverse SDE with diffusion w_t = t, Euler-Maruyama.

    It has the ODE's marginals: with score = -noise^ / t, dx = (v - w score) dt + sqrt(2 w) dW = (v + noise^) dt + ...
    The steps run on a uniform grid from t = 1 to ``last_step``, shifted between these ends; the last goes from there to
    0 without noise. SiT's published numbers take steps = 250, last_step = 0.04 and last = "mean".

    Args:
        last_step: the time from which the last step is taken.
        last: "mean" goes by the SDE's drift, which also takes away the noise that it expects to be given: t of it too
            much, to be seen as grain unless last_step is small. "data" goes to E[data | x] (SiT's "Tweedie").
    """

    last_step: float = 0.04
    last: Literal["mean", "data"] = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 2:
            raise ValueError(f"steps is {self.steps}; the SDE needs at least 2, for its last one is another kind")
        if not 0 < self.last_step < 1:
            raise ValueError(f"last_step is {self.last_step}; it must lie in (0, 1)")
        if self.last not in ("mean", "data"):
            raise ValueError(f"last is {self.last!r}; it must be mean or data")

    def times(self) -> list[float]:
        """linspace(1, last_step, steps), shifted inside, then 0."""
        last = shift_time(self.last_step, 1 / self.shift)
        grid = [1 - step / (self.steps - 1) * (1 - last) for step in range(self.steps)]
        return [*(shift_time(t, self.shift) for t in grid), 0.0]

    def step(self, velocity: VelocityFn, x: Tensor, t: float, t_next: float, draw: Callable[[], Tensor]) -> Tensor:
        """See Sampler.step."""
        h = t - t_next
        v = velocity(x, t)
        if t_next == 0 and self.last == "data":
            return x - t * v  # The data end of the line, as in path.data_from_velocity.
        noise = x + (1 - t) * v  # The noise end of the line.
        mean = x - h * (v + noise)
        return mean if t_next == 0 else mean + math.sqrt(2 * t * h) * draw()
