from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from snapgen_pl import rng
from snapgen_pl.images import from_uint8
from snapgen_pl.metrics.lpips import LPIPS
from snapgen_pl.metrics.reconstruction import reconstruction
from tests.metrics.lpips_files import random_trunk_file


def pictures() -> tuple[Tensor, Tensor]:
    """Two images with a slope in them, and the same with noise."""
    slope = torch.linspace(0, 100, 40).expand(2, 3, 36, 40)
    image = slope + 40 * rng.uniform(0, 0, torch.arange(2), (3, 36, 40))
    noisy = image + 20 * rng.normal(0, 1, torch.arange(2), (3, 36, 40))
    return noisy.clamp(0, 255).to(torch.uint8), image.to(torch.uint8)


def ssim_by_filters(x_HW: np.ndarray, y_HW: np.ndarray) -> float:
    """Wang et al. with scipy's Gaussian."""

    def blur(z: np.ndarray) -> np.ndarray:
        filtered: np.ndarray = gaussian_filter(z, 1.5, radius=5, mode="mirror")
        return filtered

    mean_x, mean_y = blur(x_HW), blur(y_HW)
    variance_x, variance_y = blur(x_HW**2) - mean_x**2, blur(y_HW**2) - mean_y**2
    covariance = blur(x_HW * y_HW) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return float((luminance * (2 * covariance + c2) / (variance_x + variance_y + c2)).mean())


def test_values_agree_with_independent_formulations(tmp_path: Path) -> None:
    image, target = pictures()
    lpips = LPIPS("alex", random_trunk_file(tmp_path, "alex"))
    found = reconstruction(image, target, lpips)
    x, y = image.numpy().astype(np.float64), target.numpy().astype(np.float64)
    psnr = 10 * np.log10(255**2 / ((x - y) ** 2).mean((1, 2, 3)))
    ssim = [np.mean([ssim_by_filters(a, b) for a, b in zip(*pair, strict=True)]) for pair in zip(x, y, strict=True)]
    np.testing.assert_allclose(found["psnr"], psnr, rtol=1e-5)
    np.testing.assert_allclose(found["ssim"], ssim, rtol=1e-4)
    torch.testing.assert_close(found["lpips"], lpips(from_uint8(image), from_uint8(target)))
    assert reconstruction(image, target).keys() == {"psnr", "ssim"}


def test_the_same_image_is_as_near_as_can_be() -> None:
    _, target = pictures()
    found = reconstruction(target, target)
    assert found["psnr"].isposinf().all()
    torch.testing.assert_close(found["ssim"], torch.ones(2))


def test_images_that_cannot_be_compared_are_refused() -> None:
    image, target = pictures()
    with pytest.raises(ValueError, match="give as many, of one size"):
        reconstruction(image, target[:1])
    with pytest.raises(ValueError, match="11 pixels or more"):
        reconstruction(image[..., :10], target[..., :10])
    with pytest.raises(ValueError, match="expected uint8"):
        reconstruction(image.float(), target)
