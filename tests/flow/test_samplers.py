import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from torch import Tensor

from snapgen_pl.flow.noise import step_noise
from snapgen_pl.flow.samplers import SDE, Euler, Heun, Renoising, Sampler
from snapgen_pl.flow.timesteps import shift_time
from snapgen_pl.rng import normal

MEAN, STD = 0.7, 0.5
KINDS: dict[str, tuple[Callable[[int], Sampler], int]] = {
    "Euler": (Euler, 1),
    "Heun": (Heun, 2),
    # The last step shrinks with the others: one as long as 0.04 would leave an error that no number of steps removes.
    "SDE": (lambda steps: SDE(steps, last_step=1 / steps), 1),
}


def no_noise(step: int) -> Tensor:
    raise AssertionError(f"a deterministic sampler asked for the noise of step {step}")


def marginal_variance(t: float) -> float:
    return ((1 - t) * STD) ** 2 + t**2


def gaussian_velocity(x: Tensor, t: float) -> Tensor:
    """E[noise - data | x_t = x] for data ~ N(MEAN, STD^2): affine in x."""
    return -MEAN + (t - (1 - t) * STD**2) / marginal_variance(t) * (x - (1 - t) * MEAN)


class Moments(NamedTuple):
    mean: float
    # d output / d initial noise: how much of the start is remembered.
    memory: float
    variance: float


def propagate(sampler: Sampler) -> Moments:
    """What the sampler makes of the Gaussian target, without Monte Carlo.

    With an affine velocity the output is offset + sum of coefficient * normal number. Row 0 starts from zeros and reads
    the offset; every other row sets one number to 1, the initial one or that of a step, and reads its coefficient.
    """
    columns = torch.eye(sampler.steps + 2, dtype=torch.float64)[..., None, None, None]
    out = sampler(gaussian_velocity, columns[1], lambda step: columns[step + 2]).flatten()
    coefficients = out[1:] - out[0]
    return Moments(out[0].item(), coefficients[0].item(), coefficients.square().sum().item())


def exact_memory(sampler: Sampler) -> float:
    """The ODE maps noise to MEAN + STD noise; the SDE also forgets at the rate d noise^ / dx = t / variance."""
    if not isinstance(sampler, SDE):
        return STD
    cells = 100_000
    return STD * math.exp(-sum(t / marginal_variance(t) for t in (np.arange(cells) + 0.5) / cells) / cells)


@pytest.mark.parametrize("shift", [1.0, 1.73, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_gaussian_target_is_reached_at_the_samplers_order(kind: str, shift: float) -> None:
    make, order = KINDS[kind]
    samplers = [replace(make(steps), shift=shift) for steps in (64, 128, 256, 512)]
    moments = [propagate(sampler) for sampler in samplers]
    exact = exact_memory(samplers[0]), STD**2
    errors = np.abs([(m.memory - exact[0], m.variance - exact[1]) for m in moments])
    slopes = np.polyfit(np.log([sampler.steps for sampler in samplers]), np.log(errors), 1)[0]
    print(f"{kind}, shift {shift}: slopes of memory and variance {slopes[0]:.3f}, {slopes[1]:.3f}; last {errors[-1]}")
    assert slopes == pytest.approx([-order, -order], abs=0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [2, 7, 50])
def test_the_mean_of_a_gaussian_target_is_exact_at_any_number_of_steps(kind: str, steps: int) -> None:
    # The mean moves on the straight line (1 - t) MEAN, where every one of these rules makes no error.
    sampler = SDE(steps) if kind == "SDE" else KINDS[kind][0](steps)
    assert propagate(sampler).mean == pytest.approx(MEAN, abs=1e-12)


def test_sits_250_step_sde_equals_a_hand_written_one() -> None:
    position, shape = torch.arange(3), (2, 4, 4)
    start = normal(0, 99, position, shape).double()
    noise_of_step = step_noise(0, position, shape)
    out = SDE(steps=250)(gaussian_velocity, start, noise_of_step)

    x = start
    times = torch.linspace(1, 0.04, 250, dtype=torch.float64).tolist()
    h = times[0] - times[1]
    for step, t in enumerate(times[:-1]):
        v = gaussian_velocity(x, t)
        score = -((1 - t) * v + x) / t
        x = x - h * (v - t * score) + math.sqrt(2 * t * h) * noise_of_step(step)
    v = gaussian_velocity(x, 0.04)
    score = -(0.96 * v + x) / 0.04
    expected = x - 0.04 * (v - 0.04 * score)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("last_step", [0.04, 0.4])
def test_the_sdes_last_step_to_the_data_leaves_no_noise_and_the_mean_leaves_its_own(last_step: float) -> None:
    # All data is one point: v = (x - point) / t. The drift then goes to point - last_step * noise.
    def velocity(x: Tensor, t: float) -> Tensor:
        seen.append((t, x))
        return (x - MEAN) / t

    seen: list[tuple[float, Tensor]] = []
    position, shape = torch.arange(3), (2, 4, 4)
    start, noise_of_step = normal(0, 99, position, shape).double(), step_noise(0, position, shape)
    clean = SDE(20, last_step=last_step, last="data")(velocity, start, noise_of_step)
    torch.testing.assert_close(clean, torch.full_like(clean, MEAN))
    grainy = SDE(20, last_step=last_step)(velocity, start, noise_of_step)
    t, x = seen[-1]
    noise = (x - (1 - t) * MEAN) / t
    torch.testing.assert_close(grainy, MEAN - last_step * noise)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_renoising_puts_its_last_guess_at_the_next_time_under_fresh_noise(steps: int) -> None:
    """By hand, for a network that guesses 0.8 of what it sees at any time but 0."""
    fresh = [torch.full((1, 1, 1, 1), 10.0 + step) for step in range(steps)]

    def velocity(x: Tensor, t: float) -> Tensor:
        return (x - 0.8 * x) / t

    start = torch.full((1, 1, 1, 1), 3.0)
    out = Renoising(steps, shift=2.0)(velocity, start, lambda step: fresh[step])
    x = 3.0
    for step, t in enumerate(Renoising(steps, shift=2.0).times()[1:]):
        x = (1 - t) * 0.8 * x + t * (10.0 + step)
    assert out.item() == pytest.approx(x, rel=1e-6)


def test_renoising_keeps_nothing_of_the_noise_that_it_began_with_but_its_guess() -> None:
    """One point of data: every guess is it, and so is the sample, whatever the noise."""
    noise = torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    out = Renoising(4)(lambda x, t: (x - 0.3) / t, noise, lambda step: noise.flip(0))
    torch.testing.assert_close(out, torch.full_like(noise, 0.3))


@given(st.sampled_from([Euler, Heun, SDE, Renoising]), st.integers(2, 60), st.floats(0.2, 5))
def test_times_fall_from_noise_to_data_and_carry_the_shift(kind: type[Sampler], steps: int, shift: float) -> None:
    sampler = kind(steps, shift)
    times = sampler.times()
    assert len(times) == steps + 1
    assert (times[0], times[-1]) == (1.0, 0.0)
    assert all(after < before for before, after in pairwise(times))
    unshifted = [shift_time(t, 1 / shift) for t in (times[:-1] if kind is SDE else times)]
    assert np.diff(unshifted) == pytest.approx(np.diff(unshifted).mean(), abs=1e-9)
    if isinstance(sampler, SDE):
        assert times[-2] == pytest.approx(sampler.last_step)


@pytest.mark.parametrize("sampler", [Euler(9), Heun(9), SDE(9), Renoising(9)], ids=repr)
def test_network_calls_are_counted_and_none_is_at_time_zero(sampler: Sampler) -> None:
    times: list[float] = []

    def velocity(x: Tensor, t: float) -> Tensor:
        times.append(t)
        return gaussian_velocity(x, t)

    sampler(velocity, torch.zeros(1, 1, 1, 1), lambda _: torch.zeros(1, 1, 1, 1))
    assert len(times) == sampler.network_calls
    assert min(times) > 0


@pytest.mark.parametrize("sampler", [Euler(1), Euler(5, shift=3.0), Heun(1), Heun(5)], ids=repr)
def test_straight_lines_are_followed_exactly_and_without_fresh_noise(sampler: Sampler) -> None:
    data, noise = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(sampler(lambda x, t: noise - data, noise, no_noise), data)


def test_the_state_is_fp32_even_from_half_precision_noise_and_stays_wider_if_it_was() -> None:
    for given_type, kept in [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)]:
        out = Euler(2)(gaussian_velocity, torch.ones(1, 1, 1, 1, dtype=given_type), no_noise)
        assert out.dtype == kept


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Euler(0), "steps is 0"),
        (lambda: SDE(1), "steps is 1"),
        (lambda: Heun(4, shift=0.0), "shift is 0"),
        (lambda: SDE(4, last_step=0.0), "last_step is 0"),
        (lambda: SDE(4, last_step=1.0), "last_step is 1"),
        (lambda: SDE(4, last="mode"), "last is 'mode'"),  # type: ignore[arg-type]
    ],
)
def test_bad_settings_are_refused_by_name(make: Callable[[], Sampler], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_sampler_is_chosen_by_class_path() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--sampler", type=Sampler)
    arguments = ["--sampler=snapgen_pl.flow.samplers.SDE", "--sampler.steps=250", "--sampler.shift=1.73"]
    assert parser.instantiate(parser.parse_args(arguments)).sampler == SDE(250, shift=1.73)
