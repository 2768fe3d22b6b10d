import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from snapgen_pl.flow.path import data_from_velocity, path_deviation, sample_path, velocity_from_residual

times = st.lists(st.floats(0, 1), min_size=1, max_size=4)


def latents(batch: int, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, batch, 2, 3, 5, generator=generator, dtype=torch.float64)


@given(times, st.integers(0, 2**32))
def test_the_velocity_leads_back_to_the_data(t: list[float], seed: int) -> None:
    data, noise = latents(len(t), 2, seed)
    x, velocity, t_B = sample_path(data, noise, torch.tensor(t, dtype=torch.float64))
    torch.testing.assert_close(data_from_velocity(x, velocity, t_B), data)


def test_time_zero_is_data_time_one_is_noise_and_the_velocity_is_the_derivative_between() -> None:
    data, noise = latents(3, 2, 0)
    assert torch.equal(sample_path(data, noise, torch.zeros(3)).x_BCHW, data)
    assert torch.equal(sample_path(data, noise, torch.ones(3)).x_BCHW, noise)
    early, late = (sample_path(data, noise, torch.tensor([t] * 3, dtype=torch.float64)) for t in (0.25, 0.75))
    torch.testing.assert_close((late.x_BCHW - early.x_BCHW) / 0.5, early.velocity_BCHW)


@given(st.floats(0, 1), st.floats(0.1, 3))
def test_what_the_linear_guess_leaves_has_unit_variance_and_nothing_of_the_input(t: float, sigma: float) -> None:
    # Data and noise as the axes of a plane: products of rows are covariances, for data of variance sigma^2.
    data, noise = torch.diag(torch.tensor([sigma, 1.0], dtype=torch.float64))[:, :, None, None, None].unbind()
    t_B = torch.full((2,), t, dtype=torch.float64)
    x, velocity, _ = sample_path(data, noise, t_B)
    deviation = path_deviation(t_B, sigma)
    guess = velocity_from_residual(x, torch.zeros_like(x), t_B, sigma)
    residual = (velocity - guess) * deviation / sigma
    torch.testing.assert_close(x.norm(), deviation[0, 0, 0, 0])
    torch.testing.assert_close(residual.norm(), torch.ones_like(residual.norm()))
    assert abs((residual * x).sum()) < 1e-12
    torch.testing.assert_close(velocity_from_residual(x, residual, t_B, sigma), velocity)


def test_shapes_that_would_broadcast_are_refused() -> None:
    data, noise = latents(3, 2, 0)
    with pytest.raises(ValueError, match="one shape"):
        sample_path(data, noise[:1], torch.zeros(3))
    with pytest.raises(ValueError, match=r"must be \(B,\)"):
        sample_path(data, noise, torch.zeros(1))
