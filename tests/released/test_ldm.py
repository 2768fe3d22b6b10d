import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from snapgen_pl.flow.guidance import Guidance
from snapgen_pl.flow.noise import initial_noise, step_noise
from snapgen_pl.images import to_uint8
from snapgen_pl.released.compvis import unet_name, vq_name
from snapgen_pl.released.diffusion import DDIM, root_linear_schedule
from snapgen_pl.released.ldm import ReleasedLDM
from tests.released.tiny import (
    CLASSES,
    assert_a_request_may_bring_its_guidance,
    assert_images_depend_on_positions_alone,
    difference,
    request,
)

WIDTHS, LAYERS, CONTEXT, DECODER_WIDTHS, CODES = (32, 64), 1, 16, (32, 64), 16
UNET, FIRST_STAGE, LABELS = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.embedding.weight"


def unet(widths: tuple[int, ...] = WIDTHS, layers: int = LAYERS, context: int = CONTEXT) -> UNet2DConditionModel:
    """As the released configuration declares it: one head everywhere."""
    lower = len(widths) - 1
    return UNet2DConditionModel(
        in_channels=3,
        out_channels=3,
        block_out_channels=widths,
        layers_per_block=layers,
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * lower),
        up_block_types=(*["CrossAttnUpBlock2D"] * lower, "UpBlock2D"),
        attention_head_dim=1,
        cross_attention_dim=context,
    ).eval()


def first_stage(widths: tuple[int, ...] = DECODER_WIDTHS, layers: int = LAYERS, codes: int = CODES) -> VQModel:
    return VQModel(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=layers,
        num_vq_embeddings=codes,
    ).eval()


@cache
def released() -> tuple[UNet2DConditionModel, VQModel, Tensor]:
    torch.manual_seed(0)
    networks = unet(), first_stage()
    for network in networks:
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.15)
    nn.init.normal_(networks[1].quantize.embedding.weight)
    return *networks, torch.randn(CLASSES + 1, CONTEXT)


def checkpoint() -> dict[str, Tensor]:
    """Tensors under CompVis' names; attention's projections are 1x1 convolutions in its autoencoder."""
    network, decoder, labels = released()
    tensors = {UNET + unet_name(name, LAYERS): tensor for name, tensor in network.state_dict().items()}
    for name, tensor in decoder.state_dict().items():
        linear = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", theirs := vq_name(name, len(DECODER_WIDTHS)))
        tensors[FIRST_STAGE + theirs] = tensor[:, :, None, None] if linear else tensor
    return tensors | {LABELS: labels}


def drawer(file: Path, **options: Any) -> ReleasedLDM:
    sizes = {"widths": WIDTHS, "layers": LAYERS, "context_dim": CONTEXT, "num_classes": CLASSES, "image_size": 32}
    decoder = {"decoder_widths": DECODER_WIDTHS, "decoder_layers": LAYERS, "codes": CODES}
    settings: dict[str, Any] = sizes | decoder | {"sampler": DDIM(4)} | options
    return ReleasedLDM(str(file), **settings)


def loaded(tensors: dict[str, Tensor], folder: Path, **options: Any) -> ReleasedLDM:
    torch.save({"state_dict": tensors, "global_step": 3}, folder / "model.ckpt")
    ldm = drawer(folder / "model.ckpt", **options)
    ldm.ready(folder)
    return ldm


def test_every_name_of_ldm_4_is_the_one_that_diffusers_converts() -> None:
    """At the released sizes, on no memory: tensors are told apart by identity."""
    with torch.device("meta"):
        network = unet((192, 384, 576, 960), 2, 512)
    tensors = {UNET + unet_name(name, 2): tensor for name, tensor in network.state_dict().items()}
    converted = convert_ldm_unet_checkpoint(tensors, dict(network.config))
    assert converted.keys() == network.state_dict().keys()
    for name, tensor in converted.items():
        assert tensor is tensors[UNET + unet_name(name, 2)], name
    for name in (
        "time_embed.0.weight",
        "input_blocks.0.0.weight",
        "input_blocks.3.0.op.weight",
        "input_blocks.4.0.skip_connection.weight",
        "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight",
        "middle_block.1.proj_in.weight",
        "middle_block.2.emb_layers.1.bias",
        "output_blocks.2.2.conv.weight",
        "output_blocks.8.1.transformer_blocks.0.ff.net.0.proj.weight",
        "output_blocks.11.0.out_layers.3.weight",
        "out.2.bias",
    ):
        assert UNET + name in tensors


def test_every_name_of_its_autoencoder_is_the_one_that_diffusers_converts() -> None:
    decoder = first_stage((32, 64, 96), 2)
    state = {name: torch.randn_like(tensor) for name, tensor in decoder.state_dict().items()}
    tensors = {FIRST_STAGE + vq_name(name, 3): tensor for name, tensor in state.items()}
    converted = convert_ldm_vae_checkpoint(tensors, dict(decoder.config))
    # diffusers' conversion is of autoencoders without codes.
    assert state.keys() - converted.keys() == {"quantize.embedding.weight"}
    for name, tensor in converted.items():
        assert torch.equal(tensor, state[name]), name
    for name in (
        "quantize.embedding.weight",
        "encoder.down.0.downsample.conv.weight",
        "encoder.mid.attn_1.proj_out.weight",
        "decoder.up.2.block.0.norm1.weight",
        "decoder.up.1.upsample.conv.bias",
        "decoder.up.0.block.0.nin_shortcut.weight",
        "decoder.norm_out.bias",
    ):
        assert FIRST_STAGE + name in tensors


def reference(seed: int, scale: float, *positions: int) -> Tensor:
    """What the networks that the checkpoint was made of draw: two forwards, guidance, DDIM, quantised decoding."""
    network, decoder, labels = released()
    label_B, position_B = request(*positions)

    def noise(x: Tensor, k: int) -> Tensor:
        conditional = network(x, k, labels[label_B][:, None]).sample
        unconditional = network(x, k, labels[-1].expand(len(x), 1, -1)).sample
        return unconditional + scale * (conditional - unconditional)

    with torch.no_grad():
        start = initial_noise(seed, position_B, (3, 16, 16))
        latent = DDIM(4)(noise, start, step_noise(seed, position_B, (3, 16, 16)))
        return to_uint8(decoder.decode(latent).sample)


def test_a_converted_checkpoint_draws_what_the_networks_before_it_did(tmp_path: Path) -> None:
    ldm = loaded(checkpoint(), tmp_path)
    assert difference(ldm.draw(6, request(0, 1, 9)), reference(6, 1.5, 0, 1, 9)) <= 1
    strong = loaded(checkpoint(), tmp_path, guidance=Guidance(4.0))
    assert difference(strong.draw(6, request(0, 1)), reference(6, 4.0, 0, 1)) <= 1
    assert difference(strong.draw(6, request(0, 1)), reference(6, 1.5, 0, 1)) > 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (f"{UNET}input_blocks.3.1.transformer_blocks.0.attn1.to_k.weight", "to_v"),
        (f"{UNET}middle_block.0.in_layers.2.weight", "out_layers.3"),
        (f"{FIRST_STAGE}decoder.mid.attn_1.k.weight", "attn_1.v"),
    ],
)
def test_a_permuted_key_draws_something_else(tmp_path: Path, one: str, other: str) -> None:
    tensors = checkpoint()
    twin = re.sub(r"to_k|in_layers\.2|attn_1\.k", other, one)
    swapped = tensors | {one: tensors[twin], twin: tensors[one]}
    assert difference(loaded(swapped, tmp_path).draw(6, request(0, 1)), reference(6, 1.5, 0, 1)) > 1


def test_images_depend_on_positions_alone_and_on_what_the_record_says(tmp_path: Path) -> None:
    ldm = loaded(checkpoint(), tmp_path)
    assert_images_depend_on_positions_alone(ldm)
    facts = ldm.describe()
    assert (facts.network, facts.network_calls, facts.sampler) == ("ReleasedLDM", 4, "DDIM(steps=4, eta=1.0)")
    name = f"{FIRST_STAGE}quantize.embedding.weight"
    tensors = checkpoint()
    other = loaded(tensors | {name: tensors[name] + 1}, tmp_path).describe()
    assert other.weights == facts.weights
    assert other.decoder_weights != facts.decoder_weights


def test_a_request_may_bring_its_guidance(tmp_path: Path) -> None:
    tensors = checkpoint()
    other = loaded(tensors, tmp_path, guidance=Guidance(4.0))
    assert_a_request_may_bring_its_guidance(loaded(tensors, tmp_path), other)


def test_it_decodes_without_tf32(tmp_path: Path) -> None:
    ldm, during = loaded(checkpoint(), tmp_path), list[bool]()
    before = torch.backends.cudnn.allow_tf32
    ldm.unet.register_forward_hook(lambda *_: during.append(torch.backends.cudnn.allow_tf32))
    ldm.first_stage.decoder.register_forward_hook(lambda *_: during.append(torch.backends.cudnn.allow_tf32))
    ldm.draw(0, request(0))
    assert before
    assert during == [True] * 4 + [False]
    assert torch.backends.cudnn.allow_tf32 == before


def test_averages_and_tables_of_the_schedule_are_left_alone(tmp_path: Path) -> None:
    kept = torch.tensor(root_linear_schedule())
    besides = {
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.diffusion_modelout2bias": torch.ones(3),
        "betas": torch.ones(1000),
        "alphas_cumprod": kept,
        "sqrt_one_minus_alphas_cumprod": torch.ones(1000),
        "sqrt_recipm1_alphas_cumprod": torch.ones(1000),
        "log_one_minus_alphas_cumprod": torch.ones(1000),
        "posterior_log_variance_clipped": torch.ones(1000),
    }
    tensors = checkpoint()
    plain, whole = loaded(tensors, tmp_path), loaded(tensors | besides, tmp_path)
    assert whole.describe() == plain.describe()
    with pytest.raises(ValueError, match="alphas_cumprod is another schedule"):
        loaded(tensors | besides | {"alphas_cumprod": kept.sqrt()}, tmp_path)


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    tensors = checkpoint()
    name = f"{UNET}input_blocks.3.1.transformer_blocks.0.attn2.to_k.weight"
    cases = {
        f"missing: {name}": {key: tensor for key, tensor in tensors.items() if key != name},
        f"missing: {LABELS}": {key: tensor for key, tensor in tensors.items() if key != LABELS},
        rf"misshapen: {name} \(64, 7\) instead of \(64, 16\)": tensors | {name: torch.ones(64, 7)},
        f"foreign: {UNET}label_emb.weight": tensors | {f"{UNET}label_emb.weight": torch.ones(3)},
        f"foreign: {FIRST_STAGE}loss.weight": tensors | {f"{FIRST_STAGE}loss.weight": torch.ones(3)},
        "foreign: cond_stage_model.transformer.weight": tensors
        | {"cond_stage_model.transformer.weight": torch.ones(3)},
    }
    for message, changed in cases.items():
        with pytest.raises(ValueError, match=message):
            loaded(changed, tmp_path)
    with pytest.raises(ValueError, match="image_size 34 is not a multiple of 4"):
        drawer(tmp_path / "model.ckpt", image_size=34)
