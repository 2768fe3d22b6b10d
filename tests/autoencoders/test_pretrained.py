import json
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.vq_model import VQModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from snapgen_pl import rng
from snapgen_pl.autoencoders.autoencoder import Posterior
from snapgen_pl.autoencoders.kl import KL
from snapgen_pl.autoencoders.pretrained import Pretrained
from snapgen_pl.autoencoders.vq import VQ
from tests.tiny_kl import kl


def vq() -> VQModel:
    torch.manual_seed(0)
    return VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        num_vq_embeddings=32,
    ).eval()


def ready(autoencoder: Pretrained, folder: Path) -> Pretrained:
    autoencoder.ready(folder, ())
    return autoencoder


def images(side: int = 16) -> Tensor:
    return rng.uniform(0, 0, torch.arange(2), (3, side, side)) * 2 - 1


@pytest.mark.parametrize(
    ("channels", "config", "shift", "scale"),
    [
        (4, {}, 0.0, 0.18215),
        (4, {"scaling_factor": 0.13025}, 0.0, 0.13025),
        (16, {"scaling_factor": 1.5305, "shift_factor": 0.0609, "use_quant_conv": False}, 0.0609, 1.5305),
        (16, {"scaling_factor": 0.3611, "shift_factor": 0.1159, "use_post_quant_conv": False}, 0.1159, 0.3611),
    ],
    ids=["sd", "sdxl", "sd3", "flux"],
)
def test_kl_is_the_network_of_diffusers(
    tmp_path: Path, channels: int, config: dict[str, object], shift: float, scale: float
) -> None:
    network = kl(channels, **config)
    network.save_pretrained(tmp_path / "vae")
    autoencoder = KL(str(tmp_path), subfolder="vae")
    assert (autoencoder.channels, autoencoder.downsampling) == (channels, 4)
    autoencoder = ready(autoencoder, tmp_path)
    with torch.no_grad():
        posterior, expected = autoencoder.encode(images()), network.encode(images()).latent_dist
        assert torch.equal(posterior.mean_BCHW, expected.mean)
        assert posterior.std_BCHW is not None
        assert torch.equal(posterior.std_BCHW, expected.std)
        assert torch.equal(autoencoder.decode(expected.mean), network.decode(expected.mean).sample)
    final = autoencoder.to_final(expected.mean)
    torch.testing.assert_close(final, (expected.mean - shift) * scale)
    torch.testing.assert_close(autoencoder.to_raw(final), expected.mean)


def test_vq_quantises_in_decoding_and_is_not_scaled(tmp_path: Path) -> None:
    network = vq()
    network.save_pretrained(tmp_path)
    autoencoder = ready(VQ(str(tmp_path)), tmp_path)
    assert (autoencoder.channels, autoencoder.downsampling) == (3, 2)
    with torch.no_grad():
        posterior = autoencoder.encode(images())
        assert posterior.std_BCHW is None
        assert torch.equal(posterior.mean_BCHW, network.encode(images()).latents)
        assert torch.equal(autoencoder.to_final(posterior.mean_BCHW), posterior.mean_BCHW)
        assert torch.equal(autoencoder.decode(posterior.mean_BCHW), network(images()).sample)


def test_shift_and_scale_may_be_given(tmp_path: Path) -> None:
    kl().save_pretrained(tmp_path)
    autoencoder = KL(str(tmp_path), shift=1.0, scale=2.0)
    assert torch.equal(autoencoder.to_final(torch.tensor(3.0)), torch.tensor(4.0))


def test_another_type_computes_otherwise_and_hands_out_fp32(tmp_path: Path) -> None:
    kl().save_pretrained(tmp_path)
    exact, rounded = (ready(KL(str(tmp_path), dtype=dtype), tmp_path) for dtype in ("float32", "bfloat16"))
    mean, other = (autoencoder.encode(images()).mean_BCHW for autoencoder in (exact, rounded))
    assert other.dtype == torch.float32
    assert not torch.equal(mean, other)
    torch.testing.assert_close(mean, other, atol=0.05, rtol=0.05)
    assert exact.identity()["weights"] == rounded.identity()["weights"]
    assert exact.identity() != rounded.identity()


def test_other_weights_are_another_autoencoder(tmp_path: Path) -> None:
    network = kl()
    network.save_pretrained(tmp_path / "a")
    with torch.no_grad():
        network.decoder.conv_out.bias[0] += 1e-3
    network.save_pretrained(tmp_path / "b")
    a, again, b = (ready(KL(str(tmp_path / name)), tmp_path) for name in ("a", "a", "b"))
    assert a.identity() == again.identity() != b.identity()


def test_it_needs_no_gradients_and_stays_in_eval(tmp_path: Path) -> None:
    kl().save_pretrained(tmp_path)
    autoencoder = ready(KL(str(tmp_path)), tmp_path)
    assert not any(parameter.requires_grad for parameter in autoencoder.parameters())
    assert not any(part.training for part in autoencoder.network.modules())


def test_what_is_wrong_is_said_when_it_is_constructed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give the folder of a downloaded network, or its name on the"):
        KL(str(tmp_path / "missing" / "folder"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no config\.json of an autoencoder in .*empty"):
        KL(str(tmp_path / "empty"))
    vq().save_pretrained(tmp_path / "vq")
    with pytest.raises(ValueError, match="holds a VQModel; KL takes a AutoencoderKL"):
        KL(str(tmp_path / "vq"))
    kl().save_pretrained(tmp_path / "kl")
    with pytest.raises(ValueError, match="scale is 0"):
        KL(str(tmp_path / "kl"), scale=0)
    with pytest.raises(ValueError, match="has no weights yet"):
        KL(str(tmp_path / "kl")).encode(images())
    with pytest.raises(ValueError, match="do not divide by the autoencoder's 4"):
        ready(KL(str(tmp_path / "kl")), tmp_path).encode(images(18))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    kl().save_pretrained(tmp_path, safe_serialization=False)
    assert (tmp_path / "diffusion_pytorch_model.bin").exists()
    with pytest.raises(ValueError, match=r"no diffusion_pytorch_model\.safetensors of an autoencoder"):
        KL(str(tmp_path)).ready(tmp_path, ())


def test_drawn_latents_have_the_posteriors_moments_and_belong_to_their_position() -> None:
    position_B = torch.arange(4000)
    posterior = Posterior(torch.full((4000, 1, 2, 2), 3.0), torch.full((4000, 1, 2, 2), 0.5))
    raw = posterior.draw(7, position_B)
    assert raw.mean().item() == pytest.approx(3, abs=0.02)
    assert raw.std().item() == pytest.approx(0.5, abs=0.02)
    part = Posterior(posterior.mean_BCHW[5:9], torch.full((4, 1, 2, 2), 0.5)).draw(7, position_B[5:9])
    assert torch.equal(part, raw[5:9])
    assert torch.equal(Posterior(raw.half()).draw(7, position_B), raw.half().float())


def change_json(file: Path, **values: object) -> None:
    content = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_a_configuration_older_than_its_scale_has_sds(tmp_path: Path) -> None:
    kl().save_pretrained(tmp_path)
    change_json(tmp_path / "config.json", scaling_factor=None, shift_factor=None)
    autoencoder = KL(str(tmp_path))
    assert (autoencoder.scale, autoencoder.shift) == (0.18215, 0)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    kl().save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor for name, tensor in tensors.items() if name != "encoder.conv_in.bias"}, weights)
    with pytest.raises(ValueError, match=r"lacks 1 weights, such as encoder\.conv_in\.bias"):
        KL(str(tmp_path)).ready(tmp_path, ())
    save_file(tensors, weights)
    change_json(tmp_path / "config.json", latent_channels=8)
    with pytest.raises(ValueError, match=r"does not fit its config\.json"):
        KL(str(tmp_path)).ready(tmp_path, ())
