"""How near decoded images are to the ones that were encoded."""

from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from snapgen_pl.images import check_uint8, from_uint8
from snapgen_pl.metrics.lpips import LPIPS

LEAST = 11  # pixels along a side: the window of SSIM


def reconstruction(image_BCHW: Tensor, target_BCHW: Tensor, lpips: LPIPS | None = None) -> dict[str, Tensor]:
    """PSNR in dB, SSIM (Wang et al., 2004) and, where its network is given, LPIPS of each image; fp32 (B,).

    PSNR is that of an image, over its three channels: a mean over images is a mean of decibels. SSIM is torchmetrics's:
    of Gaussian windows of 11 pixels with a deviation of 1.5, averaged over channels and over all pixels, with images
    mirrored at their edges, which others leave out.

    Args:
        image_BCHW: uint8 RGB, as decoded and rounded; a side has 11 pixels or more.
        target_BCHW: likewise, as encoded.
        lpips: the distance, on the images' device.

    Raises:
        ValueError: if the images are no such images, or the two differ in shape.
    """
    check_uint8(image_BCHW)
    check_uint8(target_BCHW)
    if image_BCHW.shape != target_BCHW.shape or min(image_BCHW.shape[2:]) < LEAST:
        raise ValueError(
            f"images are {tuple(image_BCHW.shape)} and targets {tuple(target_BCHW.shape)}; give as many, of one size, "
            f"with {LEAST} pixels or more a side"
        )
    image, target = image_BCHW.float(), target_BCHW.float()
    psnr_B = peak_signal_noise_ratio(image, target, data_range=255.0, reduction="none", dim=(1, 2, 3))
    ssim_B = structural_similarity_index_measure(image, target, data_range=255.0, reduction="none")
    assert isinstance(ssim_B, Tensor)
    values = {"psnr": psnr_B, "ssim": ssim_B}
    return values if lpips is None else {**values, "lpips": lpips(from_uint8(image_BCHW), from_uint8(target_BCHW))}
