import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from snapgen_pl.autoencoders.kl import KL
from snapgen_pl.data.requests import Request
from snapgen_pl.flow.guidance import Guidance, guided_velocity
from snapgen_pl.flow.samplers import SDE, Heun
from snapgen_pl.models.denoiser import VELOCITY, Conditioning, Denoiser, DenoiserOutput, PreparedConditioning
from snapgen_pl.models.peers.sit import SiTVelocity
from snapgen_pl.released.sit import ReleasedSiT
from tests.released.tiny import (
    CLASSES,
    assert_a_request_may_bring_its_guidance,
    assert_images_depend_on_positions_alone,
    difference,
    request,
)
from tests.tiny_kl import kl

HIDDEN, DEPTH, HEADS, GRID = 32, 2, 4, 4
MEAN, STD = 0.7, 0.5


class GaussianSiT(Denoiser):
    """SiT's velocity E[data - noise | x_s] for data ~ N(MEAN, STD^2), x_s = s data + (1 - s) noise; sees 1000 t."""

    in_channels, context_dim = 4, 1

    def prepare(self, conditioning: Conditioning) -> PreparedConditioning:
        return PreparedConditioning(embedding_BE=conditioning.tokens_BSD[:, 0])

    def outputs(self, x_BCHW: Tensor, t_B: Tensor, conditioning: Any) -> Iterator[tuple[str, Tensor]]:
        s = (1000 * t_B)[:, None, None, None]
        variance = (s * STD) ** 2 + (1 - s) ** 2
        yield VELOCITY, MEAN + (s * STD**2 - (1 - s)) / variance * (x_BCHW - s * MEAN)


def test_a_gaussian_in_sits_convention_is_sampled_by_our_solver() -> None:
    noise = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    nothing = Conditioning(torch.zeros(8, 1, 1))
    velocity = guided_velocity(SiTVelocity(GaussianSiT()), nothing, nothing, Guidance())
    data = Heun(200)(velocity, noise, lambda step: torch.zeros_like(noise))
    # The flow of Gaussians is affine: each sample is known, not the moments alone.
    torch.testing.assert_close(data, MEAN + STD * noise, atol=2e-3, rtol=0)


def positions() -> Tensor:
    """SiT's table, element by element: column then row, sines then cosines."""
    quarter = HIDDEN // 4
    table = torch.zeros(GRID * GRID, HIDDEN)
    for row in range(GRID):
        for column in range(GRID):
            for half, place in enumerate((column, row)):
                for i in range(quarter):
                    angle = place / 10_000 ** (i / quarter)
                    at = half * 2 * quarter + i
                    table[row * GRID + column, at] = math.sin(angle)
                    table[row * GRID + column, at + quarter] = math.cos(angle)
    return table[None]


def checkpoint() -> dict[str, Tensor]:
    """A small SiT under the names of its repository."""
    generator = torch.Generator().manual_seed(0)

    def layer(name: str, *shape: int) -> dict[str, Tensor]:
        return {
            f"{name}.weight": 0.2 * torch.randn(*shape, generator=generator),
            f"{name}.bias": 0.2 * torch.randn(shape[0], generator=generator),
        }

    tensors = {"pos_embed": positions()} | layer("x_embedder.proj", HIDDEN, 4, 2, 2)
    tensors |= layer("t_embedder.mlp.0", HIDDEN, 256) | layer("t_embedder.mlp.2", HIDDEN, HIDDEN)
    tensors["y_embedder.embedding_table.weight"] = torch.randn(CLASSES + 1, HIDDEN, generator=generator)
    for block in range(DEPTH):
        tensors |= layer(f"blocks.{block}.attn.qkv", 3 * HIDDEN, HIDDEN)
        tensors |= layer(f"blocks.{block}.attn.proj", HIDDEN, HIDDEN)
        tensors |= layer(f"blocks.{block}.mlp.fc1", 4 * HIDDEN, HIDDEN)
        tensors |= layer(f"blocks.{block}.mlp.fc2", HIDDEN, 4 * HIDDEN)
        tensors |= layer(f"blocks.{block}.adaLN_modulation.1", 6 * HIDDEN, HIDDEN)
    tensors |= layer("final_layer.adaLN_modulation.1", 2 * HIDDEN, HIDDEN)
    return tensors | layer("final_layer.linear", 2 * 2 * 8, HIDDEN)


def reference(tensors: dict[str, Tensor], x: Tensor, s: float, label: Tensor) -> Tensor:
    """SiT's forward from the tensors of its file, its own time s from noise to data."""

    def linear(name: str, value: Tensor) -> Tensor:
        return F.linear(value, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def normed(value: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return F.layer_norm(value, (HIDDEN,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]

    angles = torch.tensor([s * 10_000 ** (-i / 128) for i in range(128)])
    time = torch.cat((angles.cos(), angles.sin()))[None]
    time = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", time)))
    condition = F.silu(time + tensors["y_embedder.embedding_table.weight"][label])
    h = F.conv2d(x, tensors["x_embedder.proj.weight"], tensors["x_embedder.proj.bias"], stride=2)
    h = h.flatten(2).transpose(1, 2) + tensors["pos_embed"]
    for block in (f"blocks.{i}" for i in range(DEPTH)):
        shift, scale, gate, shift2, scale2, gate2 = linear(f"{block}.adaLN_modulation.1", condition).chunk(6, 1)
        q, k, v = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in linear(f"{block}.attn.qkv", normed(h, shift, scale)).chunk(3, -1)
        )
        attention = (q @ k.transpose(-1, -2) / math.sqrt(HIDDEN // HEADS)).softmax(-1)
        h = h + gate[:, None] * linear(f"{block}.attn.proj", (attention @ v).transpose(1, 2).flatten(2))
        inner = F.gelu(linear(f"{block}.mlp.fc1", normed(h, shift2, scale2)), approximate="tanh")
        h = h + gate2[:, None] * linear(f"{block}.mlp.fc2", inner)
    shift, scale = linear("final_layer.adaLN_modulation.1", condition).chunk(2, 1)
    patches = linear("final_layer.linear", normed(h, shift, scale)).reshape(-1, GRID, GRID, 2, 2, 8)
    return torch.einsum("nhwpqc->nchpwq", patches).reshape(-1, 8, 2 * GRID, 2 * GRID)[:, :4]


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> KL:
    folder = tmp_path_factory.mktemp("autoencoder")
    kl().save_pretrained(folder)
    network = KL(str(folder))
    network.ready(folder, ())
    return network


def drawer(file: Path, autoencoder: KL, **options: Any) -> ReleasedSiT:
    sizes: dict[str, Any] = {"hidden": HIDDEN, "depth": DEPTH, "heads": HEADS, "num_classes": CLASSES}
    settings = sizes | {"image_size": 32, "sampler": SDE(4)} | options
    return ReleasedSiT(str(file), autoencoder, **settings)


def loaded(tensors: dict[str, Tensor], folder: Path, autoencoder: KL, **options: Any) -> ReleasedSiT:
    torch.save(tensors, folder / "sit.pt")
    sit = drawer(folder / "sit.pt", autoencoder, **options)
    sit.ready(folder)
    return sit


def velocity(sit: ReleasedSiT, x: Tensor, t: float, label: Tensor) -> Tensor:
    with torch.no_grad():
        output: DenoiserOutput = sit.denoiser(x, torch.full((len(x),), t), sit.labels(label))
    return output.velocity_BCHW


@pytest.mark.parametrize("t", [0.04, 0.5, 1.0])
def test_the_velocity_is_minus_sits_at_one_minus_t(tmp_path: Path, autoencoder: KL, t: float) -> None:
    tensors = checkpoint()
    sit = loaded(tensors, tmp_path, autoencoder)
    x, label = torch.randn(3, 4, 8, 8), torch.tensor([0, 3, CLASSES])
    expected = -reference(tensors, x, 1 - t, label)
    assert expected.std() > 0.1
    torch.testing.assert_close(velocity(sit, x, t, label), expected, atol=1e-4, rtol=1e-4)


def test_every_tensor_of_the_file_counts(tmp_path: Path, autoencoder: KL) -> None:
    tensors = checkpoint()
    x, label = torch.randn(1, 4, 8, 8), torch.tensor([3])
    before = velocity(loaded(tensors, tmp_path, autoencoder), x, 0.5, label)
    for name in tensors.keys() - {"pos_embed"}:
        changed = tensors | {name: tensors[name] + 0.1 * torch.randn_like(tensors[name])}
        assert not torch.allclose(velocity(loaded(changed, tmp_path, autoencoder), x, 0.5, label), before), name
    with pytest.raises(ValueError, match=r"pos_embed \(1, 16, 32\) is not the table of sines for 4x4 patches"):
        loaded(tensors | {"pos_embed": tensors["pos_embed"].flip(1)}, tmp_path, autoencoder)


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, autoencoder: KL) -> None:
    tensors = checkpoint()
    name = "blocks.1.attn.proj.weight"
    cases = {
        rf"missing: {name}": {key: tensor for key, tensor in tensors.items() if key != name},
        r"foreign: blocks\.1\.norm1\.weight": tensors | {"blocks.1.norm1.weight": torch.ones(HIDDEN)},
        rf"misshapen: {name} \(32, 8\) instead of \(32, 32\)": tensors | {name: torch.ones(HIDDEN, 8)},
        "missing: pos_embed": {key: tensor for key, tensor in tensors.items() if key != "pos_embed"},
    }
    for message, changed in cases.items():
        with pytest.raises(ValueError, match=message):
            loaded(changed, tmp_path, autoencoder)
    with pytest.raises(ValueError, match=r"foreign: blocks\.1\..+ and 5 more"):
        loaded(tensors, tmp_path, autoencoder, depth=1)


def test_averages_are_taken_out_of_a_training_checkpoint_and_stay_when_the_file_is_replaced(
    tmp_path: Path, autoencoder: KL
) -> None:
    tensors = checkpoint()
    plain = loaded(tensors, tmp_path, autoencoder)
    raw = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    nested = loaded({"model": raw, "ema": tensors, "args": {"lr": 1e-4}}, tmp_path, autoencoder)
    save_file(tensors, tmp_path / "sit.safetensors")
    safe = drawer(tmp_path / "sit.safetensors", autoencoder)
    safe.ready(tmp_path)
    images = plain.draw(0, request(0, 1))
    for other in (nested, safe):
        assert torch.equal(other.draw(0, request(0, 1)), images)
        assert other.describe() == plain.describe()


def test_files_that_are_no_tensors_are_refused_unread(tmp_path: Path, autoencoder: KL) -> None:
    with pytest.raises(ValueError, match=r"there is no file .*missing\.pt"):
        drawer(tmp_path / "missing.pt", autoencoder).ready(tmp_path)
    for content, message in (
        ({"x": Path("an object")}, "cannot be read as tensors alone"),
        ({"epoch": 3}, "holds no table of tensors"),
    ):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(ValueError, match=message):
            drawer(tmp_path / "other.pt", autoencoder).ready(tmp_path)


def test_images_depend_on_positions_alone_and_on_what_the_record_says(tmp_path: Path, autoencoder: KL) -> None:
    tensors = checkpoint()
    sit = loaded(tensors, tmp_path, autoencoder)
    assert_images_depend_on_positions_alone(sit)
    facts = sit.describe()
    assert (facts.network, facts.network_calls, facts.decoder) == ("ReleasedSiT", 4, "KL")
    assert facts.sampler == "SDE(steps=4, shift=1.0, last_step=0.04, last='mean')"
    assert facts.guidance == "Guidance(scale=1.5, interval=(0.0, 1.0), channels=3)"
    assert facts.decoder_weights == sit.autoencoder.weights_digest()
    other = loaded(tensors | {"t_embedder.mlp.2.bias": torch.zeros(HIDDEN)}, tmp_path, autoencoder)
    assert other.describe().weights != facts.weights


def test_guidance_and_labels_reach_the_network(tmp_path: Path, autoencoder: KL) -> None:
    tensors = checkpoint()
    images = [
        loaded(tensors, tmp_path, autoencoder, guidance=guidance).draw(0, request(1))
        for guidance in (Guidance(), Guidance(3.0, channels=3), Guidance(3.0))
    ]
    assert all(difference(left, right) > 1 for left, right in zip(images, images[1:] + images[:1], strict=True))
    sit = loaded(tensors, tmp_path, autoencoder)
    one, other = (sit.draw(0, Request(torch.tensor([label]), torch.tensor([0]))) for label in (0, 1))
    assert difference(one, other) > 1
    with pytest.raises(ValueError, match="labels must lie in 0 to 4"):
        sit.draw(0, Request(torch.tensor([CLASSES]), torch.tensor([0])))


def test_a_request_may_bring_its_guidance(tmp_path: Path, autoencoder: KL) -> None:
    tensors = checkpoint()
    other = loaded(tensors, tmp_path, autoencoder, guidance=Guidance(4.0))
    assert_a_request_may_bring_its_guidance(loaded(tensors, tmp_path, autoencoder), other)


def test_sizes_that_no_patches_tile_are_refused(autoencoder: KL) -> None:
    with pytest.raises(ValueError, match="image_size 36 is not a multiple of 8"):
        drawer(Path("sit.pt"), autoencoder, image_size=36)
