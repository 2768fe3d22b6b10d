"""The samplers' random numbers: each sample's depend on (seed, position, step) and nothing else."""

from functools import partial

from torch import Tensor

from snapgen_pl.flow.samplers import StepNoise
from snapgen_pl.rng import Stream, normal

# A sample's position leaves its upper bits free: step k draws at position + (k + 1) 2^40, the start at the position.
_STEP = 1 << 40


def initial_noise(seed: int, position_B: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The state at t = 1.

    Args:
        seed: the run's seed, in [0, 2^48).
        position_B: int64 (B,), the global index of each sample, below 2^40.
        shape: (C, H, W) of the latents.

    Returns:
        fp32 (B, C, H, W), standard normal, on the device of ``position_B``.
    """
    return normal(seed, Stream.SAMPLER, position_B, shape)


def step_noise(seed: int, position_B: Tensor, shape: tuple[int, int, int]) -> StepNoise:
    """What a stochastic sampler adds in each step, drawn when it is asked for; arguments as in ``initial_noise``."""
    return partial(_noise_of_step, seed, position_B, shape)


def _noise_of_step(seed: int, position_B: Tensor, shape: tuple[int, int, int], step: int) -> Tensor:
    return normal(seed, Stream.SAMPLER, position_B + (step + 1) * _STEP, shape)
