import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.pipelines.dit.pipeline_dit import DiTPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from safetensors.torch import load_file, save_file
from torch import nn

from snapgen_pl.autoencoders.kl import KL
from snapgen_pl.flow.guidance import Guidance
from snapgen_pl.flow.noise import initial_noise, step_noise
from snapgen_pl.images import to_uint8
from snapgen_pl.models.layers import sinusoid
from snapgen_pl.released.diffusion import DDPM
from snapgen_pl.released.dit import ReleasedDiT
from tests.released.tiny import (
    CLASSES,
    assert_a_request_may_bring_its_guidance,
    assert_images_depend_on_positions_alone,
    difference,
    request,
)
from tests.tiny_kl import kl


def transformer() -> DiTTransformer2DModel:
    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=CLASSES,
    )
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.eval()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    DiTPipeline(transformer(), kl(), DDIMScheduler()).save_pretrained(folder)
    return folder


def drawer(pipeline: Path, vae: Path | None = None, **options: Any) -> ReleasedDiT:
    settings: dict[str, Any] = {"image_size": 32, "num_classes": CLASSES, "sampler": DDPM(4)} | options
    return ReleasedDiT(KL(str(vae or pipeline), subfolder="vae"), str(pipeline), **settings)


def ready(pipeline: Path, **options: Any) -> ReleasedDiT:
    dit = drawer(pipeline, **options)
    dit.ready(pipeline)
    return dit


def test_images_depend_on_positions_alone(pipeline: Path) -> None:
    dit = ready(pipeline)
    assert_images_depend_on_positions_alone(dit)
    facts = dit.describe()
    assert (facts.network, facts.network_calls, facts.sampler) == ("ReleasedDiT", 4, "DDPM(steps=4)")


def test_a_request_may_bring_its_guidance(pipeline: Path) -> None:
    assert_a_request_may_bring_its_guidance(ready(pipeline), ready(pipeline, guidance=Guidance(4.0)))


def test_it_samples_as_dits_code_does(pipeline: Path) -> None:
    """Two separate forwards, guidance on three channels, the learned variance, DiT's frequencies."""
    network, autoencoder = transformer(), kl()
    for block in network.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
        block.norm3.eps = 1e-6

    def noise(x: torch.Tensor, k: int) -> torch.Tensor:
        time = torch.full((len(x),), k)
        conditional = network(x, time, class_labels=label_B).sample
        unconditional = network(x, time, class_labels=torch.full_like(label_B, CLASSES)).sample
        guided = unconditional[:, :3] + 1.5 * (conditional[:, :3] - unconditional[:, :3])
        return torch.cat((guided, conditional[:, 3:]), dim=1)

    label_B, position_B = request(0, 1, 9)
    with torch.no_grad():
        start = initial_noise(6, position_B, (4, 8, 8))
        latent = DDPM(4)(noise, start, step_noise(6, position_B, (4, 8, 8)))
        expected = to_uint8(autoencoder.decode(latent / 0.18215).sample)
    assert difference(ready(pipeline).draw(6, request(0, 1, 9)), expected) <= 1
    assert difference(ready(pipeline, guidance=Guidance(1.5)).draw(6, request(0, 1, 9)), expected) > 1


def test_the_sinusoid_has_dits_frequencies(pipeline: Path) -> None:
    time = torch.tensor([0, 17, 999])
    for block in ready(pipeline).network.transformer_blocks:
        torch.testing.assert_close(block.norm1.emb.time_proj(time), sinusoid(time, 256), atol=1e-3, rtol=0)


def test_another_network_is_refused_by_name(pipeline: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"image_size": 64}, "sample_size 8 instead of 16"),
        ({"num_classes": 7}, "num_embeds_ada_norm 5 instead of 7"),
    ):
        with pytest.raises(ValueError, match=message):
            ready(pipeline, **options)
    transformer().save_pretrained(tmp_path / "transformer")
    weights = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    name = "transformer_blocks.1.attn1.to_k.weight"
    for changed in (
        {key: value for key, value in tensors.items() if key != name},
        tensors | {name + "s": tensors[name].clone()},
    ):
        save_file(changed, weights)
        with pytest.raises(ValueError, match=rf"are another network's: {name}"):
            drawer(tmp_path, pipeline).ready(tmp_path)
    weights.unlink()
    with pytest.raises(ValueError, match="holds no transformer of a DiT pipeline"):
        drawer(tmp_path, pipeline).ready(tmp_path)
    with pytest.raises(ValueError, match="image_size 34 is not a multiple of 4"):
        drawer(pipeline, image_size=34)
    with pytest.raises(ValueError, match="there is no folder"):
        drawer(tmp_path / "missing", pipeline).ready(tmp_path)


def test_the_hubs_older_form_is_read_without_unpickling(pipeline: Path, tmp_path: Path) -> None:
    """It has the class's older name, and its weights as a pickle of tensors."""
    transformer().save_pretrained(tmp_path / "transformer", safe_serialization=False)
    config = tmp_path / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "Transformer2DModel"}))
    older = drawer(tmp_path, pipeline)
    older.ready(tmp_path)
    assert torch.equal(older.draw(0, request(1)), ready(pipeline).draw(0, request(1)))
    torch.save(
        {"x": Path("an object"), "y": torch.zeros(100_000)}, tmp_path / "transformer" / "diffusion_pytorch_model.bin"
    )
    with pytest.raises(ValueError, match="or a damaged one"):
        drawer(tmp_path, pipeline).ready(tmp_path)
