"""Schedulers draw as the samplers do, at times with all their digits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_lcm import FlowMatchLCMScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from snapgen_pl.flow.noise import step_noise
from snapgen_pl.flow.samplers import SDE, Euler, Heun, Renoising, Sampler
from snapgen_pl.pipeline.scheduler import SamplerScheduler, asked_times, scheduler_of

SHAPE = (2, 3, 4)
NOISE = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
POSITIONS = torch.arange(2)
OURS = [Renoising(4, 3.0), Heun(4, 3.0), SDE(5, 2.0, 0.5, "data"), SDE(6)]


def velocity(x_BCHW: Tensor, t: float) -> Tensor:
    """Curved in x and in t."""
    return torch.sin(3 * x_BCHW + 7 * t) * (1 + t)


def walked(scheduler: Any, said: Callable[[Tensor, float], Tensor] = velocity, **noise: Any) -> Tensor:
    """What a loop over the timesteps, as every pipeline has it, makes of the noise."""
    x_BCHW = NOISE
    for timestep in scheduler.timesteps:
        v_BCHW = said(x_BCHW, float(timestep) / scheduler.config["num_train_timesteps"])
        (x_BCHW,) = scheduler.step(v_BCHW, timestep, x_BCHW, return_dict=False, **noise)
    return x_BCHW


def evenly(steps: int) -> np.ndarray:
    return np.linspace(1, 1 / steps, steps)


@given(steps=st.integers(1, 60), shift=st.floats(0.2, 12))
def test_diffusers_euler_has_our_times_where_it_is_told_even_sigmas(steps: int, shift: float) -> None:
    sampler = Euler(steps, shift)
    scheduler = scheduler_of(sampler)
    assert isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    scheduler.set_timesteps(sigmas=evenly(steps))
    ours = torch.tensor(sampler.times())
    torch.testing.assert_close(scheduler.sigmas, ours, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scheduler.timesteps / 1000, ours[:-1], rtol=1e-5, atol=1e-6)


def test_diffusers_euler_draws_as_ours_with_its_times_and_not_with_its_own() -> None:
    sampler = Euler(4, 3.0)
    ours = sampler(velocity, NOISE, step_noise(0, POSITIONS, SHAPE))
    scheduler = scheduler_of(sampler)
    scheduler.set_timesteps(sigmas=evenly(4))
    torch.testing.assert_close(walked(scheduler), ours, rtol=1e-5, atol=1e-5)
    scheduler.set_timesteps(4)
    assert (walked(scheduler) - ours).abs().max() > 0.1


@pytest.mark.parametrize("sampler", OURS, ids=repr)
def test_ours_draws_as_the_sampler_bit_for_bit(sampler: Sampler) -> None:
    noise = step_noise(5, POSITIONS, SHAPE)
    scheduler = scheduler_of(sampler)
    assert len(scheduler.timesteps) == sampler.network_calls
    times = iter(asked_times(sampler))
    drawn = walked(scheduler, lambda x, t: velocity(x, next(times)), step_noise=noise)
    assert torch.equal(drawn, sampler(velocity, NOISE, noise))
    scheduler.set_timesteps(sampler.steps)
    torch.testing.assert_close(walked(scheduler, step_noise=noise), drawn, rtol=1e-5, atol=1e-5)


def test_other_numbers_of_steps_are_the_samplers() -> None:
    scheduler = scheduler_of(SDE(5, 2.0, 0.5, "data"))
    scheduler.set_timesteps(9)
    noise = step_noise(5, POSITIONS, SHAPE)
    ours = SDE(9, 2.0, 0.5, "data")(velocity, NOISE, noise)
    torch.testing.assert_close(walked(scheduler, step_noise=noise), ours, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="the SDE needs at least 2"):
        scheduler.set_timesteps(1)


@pytest.mark.parametrize("steps", [4, 8])
def test_renoising_is_diffusers_lcm_under_the_noise_of_one_generator(steps: int) -> None:
    ours = scheduler_of(Renoising(steps, 3.0))
    theirs = FlowMatchLCMScheduler(shift=3.0)
    theirs.set_timesteps(sigmas=evenly(steps))
    drawn = [walked(each, generator=torch.Generator().manual_seed(7)) for each in (ours, theirs)]
    torch.testing.assert_close(*drawn, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(drawn[0], walked(scheduler_of(Renoising(steps, 3.0))), atol=0.1)


def test_times_keep_their_fractions() -> None:
    """The second of two steps is at t = 0.1234: 123 would be another time, and is refused."""
    shift = 0.1234 / (1 - 0.1234)
    sampler = Renoising(2, shift)
    scheduler = scheduler_of(sampler)
    assert scheduler.timesteps.dtype == torch.float32
    torch.testing.assert_close(scheduler.timesteps, torch.tensor([1000, 123.4]))
    noise = step_noise(0, POSITIONS, SHAPE)
    ours = sampler(velocity, NOISE, noise)
    torch.testing.assert_close(walked(scheduler, step_noise=noise), ours, rtol=1e-5, atol=1e-5)
    scheduler.set_timesteps(2)
    rounded = walked(scheduler, lambda x, t: velocity(x, round(t * 1000) / 1000), step_noise=noise)
    assert (rounded - ours).abs().max() > 1e-4
    scheduler.set_timesteps(2)
    scheduler.step(NOISE, 1000.0, NOISE)
    with pytest.raises(ValueError, match=r"timestep is 123\.0, but 123\.4 comes next; give it unrounded"):
        scheduler.step(NOISE, torch.tensor(123), NOISE)


def test_a_step_too_many_is_refused() -> None:
    scheduler = scheduler_of(Renoising(1))
    walked(scheduler)
    with pytest.raises(ValueError, match="all timesteps are done; call set_timesteps"):
        scheduler.step(NOISE, 1000.0, NOISE)


@pytest.mark.parametrize("sampler", [*OURS, Euler(3, 2.0)], ids=repr)
def test_it_comes_back_from_its_file(sampler: Sampler, tmp_path: Path) -> None:
    scheduler = scheduler_of(sampler)
    scheduler.save_pretrained(tmp_path)
    again = type(scheduler).from_pretrained(tmp_path)
    assert torch.equal(again.timesteps, scheduler.timesteps)
    if isinstance(again, SamplerScheduler):
        assert again.sampler == sampler
    else:
        assert again.shift == sampler.shift
