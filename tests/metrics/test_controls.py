import pytest
import torch

from snapgen_pl.metrics.controls import CONTROLS, reduced


def test_flat_images_survive_reduction_and_fine_detail_does_not() -> None:
    flat = torch.full((1, 3, 64, 64), 200, dtype=torch.uint8)
    assert torch.equal(reduced(flat, 8), flat)
    checkers = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 255
    fine = checkers.to(torch.uint8).expand(1, 3, 64, 64)
    assert reduced(fine, 16).float().std() < 12


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.name)
def test_controls_keep_shape_and_type(control) -> None:  # type: ignore[no-untyped-def]
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    degraded = control.degrade(images)
    assert degraded.shape == images.shape
    assert degraded.dtype == torch.uint8
