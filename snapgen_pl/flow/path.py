"""The straight path of rectified flow (Liu et al., 2023): x_t = (1 - t) data + t noise.

Every point of the line moves at the same velocity v = dx_t / dt = noise - data, and that is what a network learns.
Time runs from data to noise throughout the project: t = 0 is data, t = 1 is noise.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class PathSample(NamedTuple):
    """Points on the path, and what a network should say there.

    Attributes:
        x_BCHW: x_t, what the network sees.
        velocity_BCHW: the target, noise - data.
        t_B: the times, in [0, 1].
    """

    x_BCHW: Tensor
    velocity_BCHW: Tensor
    t_B: Tensor


def sample_path(data_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> PathSample:
    """Walks from each datum towards its noise until time t.

    Args:
        data_BCHW: latents.
        noise_BCHW: standard normal numbers of the same shape.
        t_B: times in [0, 1]; 1 is noise.

    Raises:
        ValueError: data and noise differ in shape, or there is not one time a sample.
    """
    if data_BCHW.shape != noise_BCHW.shape or t_B.shape != data_BCHW.shape[:1]:
        raise ValueError(
            f"data {tuple(data_BCHW.shape)} and noise {tuple(noise_BCHW.shape)} must have one shape, (B, C, H, W), "
            f"and t {tuple(t_B.shape)} must be (B,)"
        )
    t_B111 = t_B[:, None, None, None]
    x_BCHW = (1 - t_B111) * data_BCHW + t_B111 * noise_BCHW
    return PathSample(x_BCHW, noise_BCHW - data_BCHW, t_B)


def data_from_velocity(x_BCHW: Tensor, velocity_BCHW: Tensor, t_B: Tensor) -> Tensor:
    """The data end of the line through x_t: data = x_t - t v."""
    return x_BCHW - t_B[:, None, None, None] * velocity_BCHW


def path_deviation(t_B: Tensor, sigma_data: float) -> Tensor:
    """The standard deviation r of x_t for data of deviation sigma_data, r^2 = (1 - t)^2 sigma^2 + t^2: (B, 1, 1, 1)."""
    return torch.hypot((1 - t_B) * sigma_data, t_B)[:, None, None, None]


def velocity_from_residual(x_BCHW: Tensor, residual_BCHW: Tensor, t_B: Tensor, sigma_data: float) -> Tensor:
    """The velocity where a network says only what the best linear guess leaves open.

    v = (t - (1 - t) sigma^2) x_t / r^2 + sigma F / r. The first term is E[v | x_t] for data of deviation sigma without
    structure; what remains of v has then the deviation sigma / r at every time, and F that of 1. It is noise at t = 0
    and data at t = 1: EDM's preconditioning (Karras et al., 2022) on the straight path.
    """
    t_B111 = t_B[:, None, None, None]
    r_B111 = path_deviation(t_B, sigma_data)
    return (t_B111 - (1 - t_B111) * sigma_data**2) * x_BCHW / r_B111**2 + sigma_data * residual_BCHW / r_B111
