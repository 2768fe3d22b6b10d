import pytest
import torch

from snapgen_pl.distill.velocity_error import velocity_error


def test_each_sample_has_its_own_mean_square() -> None:
    velocity, target = torch.zeros(2, 2, 1, 2), torch.zeros(2, 2, 1, 2)
    velocity[0] = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])
    target[1] = -3
    assert velocity_error(velocity, target).tolist() == [(1 + 4 + 9 + 16) / 4, 9]


def test_low_precision_is_left_before_anything_is_subtracted() -> None:
    velocity = torch.full((1, 4, 8, 8), 1.0, dtype=torch.bfloat16)
    target = torch.full((1, 4, 8, 8), 1.001)
    error = velocity_error(velocity, target)
    assert error.dtype == torch.float32
    assert error.item() == pytest.approx(1e-6, rel=1e-3)


def test_a_teacher_of_other_latents_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 4, 8, 8\), its target \(2, 1, 8, 8\)"):
        velocity_error(torch.zeros(2, 4, 8, 8), torch.zeros(2, 1, 8, 8))
