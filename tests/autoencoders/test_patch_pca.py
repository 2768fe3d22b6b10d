from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from snapgen_pl.autoencoders.patch_pca import FILE, PatchPCA
from snapgen_pl.images import from_uint8, to_uint8


def images(count: int = 40, size: int = 16) -> Tensor:
    """Smooth random images, whose patches have a steep spectrum."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    return (255 * fine).to(torch.uint8)


def fitted(patch: int = 4, channels: int = 8, whitening: float = 0.5) -> PatchPCA:
    autoencoder = PatchPCA(patch, channels, whitening)
    autoencoder.fit(images().split(16))
    return autoencoder


def test_the_fit_is_the_singular_value_decomposition_of_the_patches() -> None:
    autoencoder = fitted()
    x = from_uint8(images())
    patches = torch.nn.functional.unfold(x, 4, stride=4).transpose(1, 2).flatten(0, 1).double()
    _, singular, vectors = torch.linalg.svd(patches - patches.mean(0), full_matrices=False)
    cosines = (autoencoder.basis.double() * vectors[:8]).sum(1).abs()
    torch.testing.assert_close(cosines, torch.ones(8, dtype=torch.float64), atol=1e-5, rtol=0)
    expected = (singular[:8] / len(patches) ** 0.5).float()
    torch.testing.assert_close(autoencoder.std, expected, rtol=1e-4, atol=1e-6)


def test_the_psnr_it_says_is_the_psnr_it_has() -> None:
    autoencoder = PatchPCA(4, 8)
    said = autoencoder.fit(images().split(16))
    x = from_uint8(images())
    error = (autoencoder.decode(autoencoder.encode(x).mean_BCHW) - x).square().mean()
    assert said == pytest.approx(10 * torch.log10(4 / error).item(), abs=1e-3)


def test_all_components_lose_nothing() -> None:
    autoencoder = fitted(patch=4, channels=48)
    assert torch.equal(to_uint8(autoencoder.decode(autoencoder.encode(from_uint8(images())).mean_BCHW)), images())


@given(st.floats(0, 1))
def test_final_latents_have_unit_mean_variance_and_come_back(whitening: float) -> None:
    autoencoder = fitted(whitening=whitening)
    raw = autoencoder.encode(from_uint8(images())).mean_BCHW
    final = autoencoder.to_final(raw)
    assert final.square().mean().sqrt().item() == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(autoencoder.to_raw(final), raw, rtol=1e-5, atol=1e-5)


def test_full_whitening_gives_every_component_unit_variance() -> None:
    final = fitted(whitening=1.0).to_final(fitted().encode(from_uint8(images())).mean_BCHW)
    torch.testing.assert_close(final.var(dim=(0, 2, 3), unbiased=False), torch.ones(8), rtol=1e-3, atol=1e-3)


def test_it_is_kept_with_the_run_and_loaded_not_refitted(tmp_path: Path) -> None:
    first = PatchPCA(4, 8)
    assert "PSNR" in first.ready(tmp_path / "run", images().split(16))
    second = PatchPCA(4, 8)
    assert "autoencoder.safetensors" in second.ready(tmp_path / "run", ())
    x = from_uint8(images())
    assert torch.equal(first.encode(x).mean_BCHW, second.encode(x).mean_BCHW)
    with pytest.raises(ValueError, match="holds 8 components of 48 values, the configuration asks for 4 components"):
        PatchPCA(4, 4).ready(tmp_path / "run", ())


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="channels 49"):
        PatchPCA(4, 49)
    with pytest.raises(ValueError, match=r"whitening is 1\.5"):
        PatchPCA(4, 8, whitening=1.5)
    with pytest.raises(ValueError, match="not fitted"):
        PatchPCA(4, 8).encode(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="do not divide into patches of 4"):
        fitted().encode(torch.zeros(1, 3, 18, 16))
    with pytest.raises(ValueError, match="0 patches cannot fit"):
        PatchPCA(4, 8).fit([])


def test_a_run_goes_on_in_the_latents_of_the_run_that_it_begins_with(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    PatchPCA(4, 8).ready(before, images().split(16))
    autoencoder = PatchPCA(4, 8)
    autoencoder.take_over(before, after)
    autoencoder.ready(after, iter(()))  # not fitted anew
    assert (after / FILE).read_bytes() == (before / FILE).read_bytes()
    autoencoder.take_over(before, after)  # again, as when the command is given again
    PatchPCA(4, 8).ready(tmp_path / "other", images(size=32).split(16))
    with pytest.raises(ValueError, match=r"makes other latents than .* choose another --name"):
        autoencoder.take_over(tmp_path / "other", after)
