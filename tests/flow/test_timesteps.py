import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from torch import Tensor

from snapgen_pl.flow.samplers import Euler
from snapgen_pl.flow.timesteps import (
    LogitNormal,
    TimestepDensity,
    TimestepGrid,
    Uniform,
    even_times,
    shift_time,
    time_bin,
)
from snapgen_pl.rng import Stream, uniform

shifts = st.floats(0.1, 10)
DENSITIES = [
    Uniform(),
    Uniform(shift=3.0),
    Uniform(shift=0.5),
    LogitNormal(),
    LogitNormal(shift=1.73),
    LogitNormal(mean=-0.4, std=1.3, shift=3.0),
]


@pytest.mark.parametrize("first", [0, 40_000, 10_000_000, 2**40])
def test_any_run_of_positions_fills_the_times_evenly(first: int) -> None:
    t_B = even_times(torch.arange(first, first + 1000)).sort().values
    # Gaps between multiples of the golden ratio are 0.38 to 2.62 of their mean (three-gap theorem).
    assert 0 <= t_B[0] < t_B[-1] < 1
    assert torch.diff(t_B).max() < 2.62 / 1000
    assert torch.diff(t_B).min() > 0.38 / 1000
    golden = Fraction(math.isqrt(5 << 200), 1 << 101) - Fraction(1, 2)
    exact = [float(position * golden % 1) for position in range(first, first + 1000)]
    assert t_B.tolist() == pytest.approx(sorted(exact), abs=2e-7 + first * 2.0**-62)


def cumulative(density: TimestepDensity, cells: int = 20_000) -> tuple[Tensor, Tensor]:
    """The distribution function at the cells' upper edges, by the midpoint rule over the pdf."""
    edge = torch.linspace(0, 1, cells + 1, dtype=torch.float64)
    return edge[1:], density.pdf((edge[1:] + edge[:-1]) / 2).cumsum(0) / cells


@given(st.floats(0, 1), shifts, shifts)
def test_shifts_compose_by_product_and_the_reciprocal_undoes_one(t: float, a: float, b: float) -> None:
    assert shift_time(shift_time(t, a), b) == pytest.approx(shift_time(t, a * b), abs=1e-12)
    assert shift_time(shift_time(t, a), 1 / a) == pytest.approx(t, abs=1e-12)
    assert shift_time(torch.tensor(t, dtype=torch.float64), a).item() == shift_time(t, a)


def test_a_shift_matches_the_published_formula_and_keeps_the_ends() -> None:
    assert shift_time(0.5, 3.0) == 3 * 0.5 / (1 + 2 * 0.5) == 0.75
    assert (shift_time(0.0, 3.0), shift_time(1.0, 3.0), shift_time(0.3, 1.0)) == (0.0, 1.0, 0.3)


def test_bins_are_equal_parts_whose_last_has_both_its_ends() -> None:
    assert time_bin(torch.tensor([0.0, 0.249, 0.25, 0.75, 1.0]), 4).tolist() == [0, 0, 1, 3, 3]


@pytest.mark.parametrize("density", DENSITIES, ids=repr)
def test_the_density_integrates_to_one_and_vanishes_outside(density: TimestepDensity) -> None:
    assert cumulative(density)[1][-1].item() == pytest.approx(1, abs=1e-6)
    assert density.pdf(torch.tensor([-0.1, 1.1])).tolist() == [0, 0]


@pytest.mark.parametrize("density", DENSITIES, ids=repr)
def test_samples_follow_the_density(density: TimestepDensity) -> None:
    n = 50_000
    t = density.sample(uniform(0, Stream.TIMESTEP, torch.arange(n))).double().sort().values
    edge, below = cumulative(density)
    empirical = torch.searchsorted(t, edge, right=True) / n
    # Kolmogorov-Smirnov at the 0.1 % level; the numbers are fixed, so this holds always or never.
    assert (empirical - below).abs().max() < 1.95 / math.sqrt(n)


@given(st.floats(-2, 2), st.floats(0.3, 3), shifts)
def test_shifting_a_logit_normal_adds_the_logarithm_of_the_shift_to_its_mean(
    mean: float, std: float, shift: float
) -> None:
    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    shifted, moved = LogitNormal(mean=mean, std=std, shift=shift), LogitNormal(mean=mean + math.log(shift), std=std)
    torch.testing.assert_close(shifted.sample(u), moved.sample(u))
    torch.testing.assert_close(shifted.pdf(u), moved.pdf(u))


def test_a_logit_normal_density_is_zero_and_not_nan_at_the_ends() -> None:
    assert LogitNormal(shift=3.0).pdf(torch.tensor([0.0, 1.0])).tolist() == [0, 0]
    peak = LogitNormal().pdf(torch.tensor(0.5)).item()
    assert peak == pytest.approx(4 / math.sqrt(2 * math.pi))


@pytest.mark.parametrize("name", ["shift", "std"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_scales_that_are_not_positive_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is"):
        LogitNormal(**{name: value})


def test_a_mean_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="mean is nan"):
        LogitNormal(mean=math.nan)


@given(st.integers(1, 40), st.floats(0.2, 5))
def test_a_grids_times_are_drawn_alike_and_followed_by_the_next(steps: int, shift: float) -> None:
    times = Euler(steps, shift).times()
    grid = TimestepGrid(tuple(times))
    drawn = grid.sample((torch.arange(3 * steps) + 0.5) / (3 * steps))
    expected = torch.tensor(times)
    assert torch.equal(drawn, expected[:-1].repeat_interleave(3))
    assert torch.equal(grid.next(drawn), expected[1:].repeat_interleave(3))
    assert grid.sample(torch.tensor([0.0, 1.0])).tolist() == [expected[0].item(), expected[-2].item()]


@pytest.mark.parametrize("times", [(), (0.0,), (1.0, 0.5), (0.5, 1.0, 0.0)])
def test_a_grid_that_does_not_fall_to_data_is_refused(times: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="they must fall from a sampler's first time to 0"):
        TimestepGrid(times)


def test_a_density_is_chosen_by_class_path() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--density", type=TimestepDensity)
    arguments = ["--density=snapgen_pl.flow.timesteps.LogitNormal", "--density.shift=3.0"]
    assert parser.instantiate(parser.parse_args(arguments)).density == LogitNormal(shift=3.0)
