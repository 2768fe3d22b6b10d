from importlib import import_module
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_pl.experiments import experiments_dir
from snapgen_pl.models.count import Cost, count, count_module
from snapgen_pl.models.peers.dit import DiT
from snapgen_pl.models.unet import UNet
from snapgen_pl.tables.declared import declared_denoiser

TOKENS = 77


class Attention(nn.Module):
    """Grouped attention without weights: what is counted is the attention alone."""

    def forward(self, q_BNSD: Tensor, kv_BKSD: Tensor, mask_BS: Tensor | None = None) -> Tensor:
        mask = None if mask_BS is None else mask_BS[:, None, None]
        return F.scaled_dot_product_attention(q_BNSD, kv_BKSD, kv_BKSD, attn_mask=mask, enable_gqa=True)


@pytest.mark.parametrize("kv_heads", [1, 2, 8])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_counts_two_products_per_query_head_however_few_the_key_heads(kv_heads: int, masked: bool) -> None:
    batch, heads, queries, keys, width = 2, 8, 16, 20, 32
    mask = (torch.ones(batch, keys, dtype=torch.bool),) if masked else ()
    cost = count_module(
        Attention(), torch.empty(batch, heads, queries, width), torch.empty(batch, kv_heads, keys, width), *mask
    )
    assert cost == Cost(params=0, macs=2 * batch * heads * queries * keys * width)


@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (4, 1), (12, 2)])
def test_a_grouped_convolution_counts_the_channels_of_its_group_alone(groups: int, stride: int) -> None:
    convolution = nn.Conv2d(12, 24, 3, stride, padding=1, groups=groups, bias=False)
    cost = count_module(convolution, torch.empty(1, 12, 8, 8))
    assert cost == Cost(params=24 * (12 // groups) * 9, macs=(8 // stride) ** 2 * 24 * (12 // groups) * 9)


def test_a_separable_convolution_is_its_two_parts() -> None:
    separable = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 64, 1))
    assert count_module(separable, torch.empty(1, 32, 8, 8)).macs == 64 * (32 * 9 + 32 * 64)


def test_a_shared_parameter_is_one_parameter() -> None:
    layer = nn.Linear(8, 8)
    assert count_module(nn.Sequential(layer, layer), torch.empty(3, 8)) == Cost(params=72, macs=2 * 3 * 64)


def test_a_module_compiled_in_place_counts_as_it_was_written() -> None:
    module = nn.Linear(8, 4)
    module.compile()
    assert count_module(module, torch.empty(2, 8)).macs == 64


def test_counting_leaves_the_weights_and_their_device_alone() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    count_module(module, torch.randn(2, 4))
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(("channels", "gmacs"), [(4, 4969.94), (16, 4970.85)])
def test_the_decoders_convention_gives_the_published_decoders(channels: int, gmacs: float) -> None:
    diffusers = import_module("diffusers")

    with torch.device("meta"):
        autoencoder = diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=channels,
        )
    latent_BCHW = torch.empty(1, channels, 128, 128)
    assert count_module(autoencoder.decoder, latent_BCHW, convention="decoder").gmacs == pytest.approx(gmacs, abs=0.01)
    assert count_module(autoencoder.decoder, latent_BCHW).gmacs == pytest.approx(5235.6, abs=0.6)


def test_the_published_totals_of_dit_xl_2() -> None:
    with torch.device("meta"):
        labels = nn.Embedding(1001, 1152)
        cost = count(DiT(learn_sigma=True), size=32, tokens=1)
    assert (cost.params + labels.weight.numel()) / 1e6 == pytest.approx(674.83, abs=0.005)
    assert cost.gmacs == pytest.approx(118.62, abs=0.03)


def test_the_published_totals_of_snapgen() -> None:
    with torch.device("meta"):
        imagenet, text = UNet(), UNet(context_dim=2304)
    cost = count(imagenet, size=32, tokens=TOKENS)
    assert (round(cost.params_m), round(cost.gmacs)) == (372, 38)
    assert cost.params_m == pytest.approx(372.38, abs=0.005)
    assert cost.gmacs == pytest.approx(37.92, abs=0.005)
    assert round(count(text, size=32, tokens=TOKENS).params_m) == 379


def test_the_thin_sdxl_baseline_equals_diffusers_unet_exactly() -> None:
    diffusers = import_module("diffusers")

    channels, layers, heads = [256, 512, 896], [0, 2, 4], [4, 8, 14]
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel(
            sample_size=32,
            block_out_channels=channels,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=[1, *layers[1:]],
            attention_head_dim=heads,
            use_linear_projection=True,
            cross_attention_dim=2048,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
    file = experiments_dir() / "imagenet256" / "ablation" / "1_sdxl_thin.yaml"
    ours = declared_denoiser(file, context_dim=2048, pooled_dim=2816)
    cost = count(ours, size=32, tokens=TOKENS)
    assert cost.params == sum(parameter.numel() for parameter in theirs.parameters())
    assert cost.macs == _macs_of_diffusers(theirs)


def _macs_of_diffusers(unet: nn.Module) -> int:
    class Flat(nn.Module):
        """Takes SDXL's added conditions as positional tensors."""

        def __init__(self) -> None:
            super().__init__()
            self.unet = unet

        def forward(self, x: Tensor, t: Tensor, tokens: Tensor, text: Tensor, times: Tensor) -> Tensor:
            added = {"text_embeds": text, "time_ids": times}
            out: Tensor = self.unet(x, t, tokens, added_cond_kwargs=added).sample
            return out

    inputs = torch.empty(1, 4, 32, 32), torch.empty(1), torch.empty(1, TOKENS, 2048)
    return count_module(Flat(), *inputs, torch.empty(1, 1280), torch.empty(1, 6)).macs


def test_the_cost_of_a_dit_grows_with_depth_by_the_block() -> None:
    with torch.device("meta"):
        costs = [count(DiT(hidden=64, heads=4, depth=depth, context_dim=64), size=16, tokens=1) for depth in (1, 2, 3)]
    patches, hidden = 64, 64
    block = patches * 12 * hidden**2 + 2 * patches**2 * hidden + 6 * hidden**2
    assert [after.macs - before.macs for before, after in pairwise(costs)] == [block, block]
