import hashlib
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snapgen_pl.data.emoji.vendored import Vendored
from snapgen_pl.metrics.inception import Inception
from tests.metrics.fidelity import random_weights, torch_fidelity


@pytest.fixture(scope="module")
def images() -> Tensor:
    return Vendored().images("noto", 300)[::100].permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, images: Tensor) -> Path:
    return random_weights(tmp_path_factory.mktemp("inception") / "weights.pth", images)


@pytest.fixture(scope="module")
def inception(weights: Path) -> Inception:
    return Inception(weights)


def test_pool_and_logits_are_torch_fidelitys_and_vary_between_images(
    inception: Inception, weights: Path, images: Tensor
) -> None:
    features = inception(images)
    layers = ["2048", "logits_unbiased", "logits"]
    theirs = torch_fidelity().FeatureExtractorInceptionV3("theirs", layers, feature_extractor_weights_path=weights)
    pool_BD, unbiased_BK, biased_BK = theirs(images)
    assert torch.equal(features.pool_BD, pool_BD)
    assert torch.equal(features.logits_BK, unbiased_BK)
    assert not torch.allclose(unbiased_BK, biased_BK, atol=1e-3)
    for feature in features:
        assert feature.dtype == torch.float32
        assert feature.std(dim=0).mean() > 0.1


def test_spatial_features_are_the_first_channels_of_mixed_6s_1x1_branch_by_row_column_channel(
    inception: Inception, images: Tensor
) -> None:
    inputs: list[Tensor] = []
    block: nn.Module = inception.network.Mixed_6d  # type: ignore[assignment]
    with block.register_forward_pre_hook(lambda _, args: inputs.append(args[0])):
        spatial_BD = inception(images).spatial_BD
    weights = {name: tensor[:7] for name, tensor in block.branch1x1.state_dict().items() if tensor.ndim}
    expected_BCHW = F.batch_norm(
        F.conv2d(inputs[0], weights["conv.weight"]),
        weights["bn.running_mean"],
        weights["bn.running_var"],
        weights["bn.weight"],
        weights["bn.bias"],
        eps=1e-3,
    ).relu()
    assert spatial_BD.shape == (3, 17 * 17 * 7)
    for row, column, channel in ((0, 0, 0), (3, 11, 5), (16, 16, 6)):
        found = spatial_BD[:, (row * 17 + column) * 7 + channel]
        torch.testing.assert_close(found, expected_BCHW[:, channel, row, column], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(spatial_BD.view(3, 17, 17, 7).movedim(-1, 1), expected_BCHW, atol=1e-4, rtol=1e-4)


def test_it_is_frozen_and_stays_in_eval_mode(inception: Inception, images: Tensor) -> None:
    inception.train()
    assert not any(part.training for part in inception.modules())
    assert not any(parameter.requires_grad for parameter in inception.parameters())
    assert not any(feature.requires_grad for feature in inception(images[:1]))


def test_features_are_fp32_under_autocast_and_without_tf32(inception: Inception, images: Tensor) -> None:
    plain = inception(images[:1])
    before, during = torch.backends.cudnn.allow_tf32, []
    with (
        torch.autocast("cpu", torch.bfloat16),
        inception.network.register_forward_hook(lambda *_: during.append(torch.backends.cudnn.allow_tf32)),
    ):
        under_autocast = inception(images[:1])
    assert all(torch.equal(a, b) for a, b in zip(plain, under_autocast, strict=True))
    assert during == [False]
    assert torch.backends.cudnn.allow_tf32 == before


def test_building_it_leaves_the_global_random_state_alone_and_the_digest_is_the_files(weights: Path) -> None:
    before = torch.get_rng_state()
    inception = Inception(weights)
    assert torch.equal(torch.get_rng_state(), before)
    assert inception.digest == hashlib.sha256(weights.read_bytes()).hexdigest()


@pytest.mark.parametrize("wrong", [torch.zeros(1, 3, 64, 64), torch.zeros(1, 1, 64, 64, dtype=torch.uint8)])
def test_images_that_are_not_rgb_bytes_are_refused(inception: Inception, wrong: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 images \(B, 3, H, W\)"):
        inception(wrong)


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> object:
        return Path.touch, (self.file,)


def test_no_file_of_weights_is_executed(tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    torch.save({"fc.weight": Planted(planted)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights.pth is no file of weights, or damaged; download weights-inception"):
        Inception(tmp_path / "weights.pth")
    assert not planted.exists()


def test_other_weights_are_refused_by_name(weights: Path, tmp_path: Path) -> None:
    file = tmp_path / "other.pth"
    tensors = torch.load(weights, weights_only=True)
    lacking = {name: tensor for name, tensor in tensors.items() if name != "Mixed_6d.branch1x1.conv.weight"}
    for other, named in (
        (lacking, 'Missing.*"Mixed_6d.branch1x1.conv.weight"'),
        (tensors | {"AuxLogits.fc.weight": torch.zeros(1)}, 'Unexpected.*"AuxLogits.fc.weight"'),
    ):
        torch.save(other, file)
        with pytest.raises(ValueError, match=rf"other.pth holds another network's weights.*{named}"):
            Inception(file)
    torch.save({"state_dict": lacking}, file)
    with pytest.raises(ValueError, match=r"other.pth holds more than named tensors"):
        Inception(file)


def test_a_missing_file_or_package_is_named_with_the_remedy(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"none.pth cannot be read .*download weights-inception-2015-12-05-6726825d"):
        Inception(tmp_path / "none.pth")
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ValueError, match=r"torch_fidelity is not installed; run `pip install 'snapgen-pl\[fid\]'`"):
        Inception(weights)
