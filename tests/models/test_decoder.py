import re
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_pl.models.count import count_module
from snapgen_pl.models.decoder import Decoder, DecoderBlock, Stage

SMALL = [Stage(32, 2), Stage(32, 1), Stage(64, 1)]


def randomise(net: nn.Module) -> None:
    """Leaves the zero start, where every block is its shortcut, and the norms that change nothing."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 1.0)


def small_decoder(**overrides: Any) -> Decoder:
    net = Decoder(**{"stages": SMALL, "in_channels": 4} | overrides)
    randomise(net)
    return net


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def sd3_of(widths: tuple[int, ...], in_channels: int) -> Decoder:
    """The ladder's start, of any width; from the finest resolution down, as diffusers names them."""
    stages = [Stage(width, 3, norm=True) for width in reversed(widths)]
    return Decoder(stages, 2, True, in_channels, "dense", shortcut=True)


def diffusers_decoder(widths: tuple[int, ...], in_channels: int) -> nn.Module:
    from diffusers.models.autoencoders.vae import Decoder as Theirs

    blocks = ("UpDecoderBlock2D",) * len(widths)
    return Theirs(in_channels, 3, up_block_types=blocks, block_out_channels=widths, layers_per_block=2).eval()


def diffusers_name(name: str) -> str:
    """Our parameter names -> those of diffusers' Decoder; the fused projection of attention is handled apart."""
    first = r"^stages\.0\.(\d)"
    name = re.sub(first, r"up_blocks.0.resnets.\1", name)
    if found := re.match(r"stages\.(\d)\.(\d)\.(.*)", name):
        stage, place, rest = int(found[1]), int(found[2]), found[3]
        upsample, block = f"up_blocks.{stage - 1}.upsamplers.0", f"up_blocks.{stage}.resnets.{place - 1}"
        name = f"{upsample if place == 0 else block}.{rest}"
    for ours, theirs in [
        ("middle.0", "mid_block.resnets.0"),
        ("middle.1.norm", "mid_block.attentions.0.group_norm"),
        ("middle.1.out", "mid_block.attentions.0.to_out.0"),
        ("middle.2", "mid_block.resnets.1"),
        ("shortcut", "conv_shortcut"),
        ("output.0", "conv_norm_out"),
        ("output.2", "conv_out"),
    ]:
        name = name.replace(ours, theirs)
    return name


def copy_from_diffusers(net: Decoder, theirs: nn.Module) -> None:
    state = theirs.state_dict()
    own = {}
    for name in net.state_dict():
        if name.startswith("middle.1.qkv"):
            kind = name.rpartition(".")[2]
            own[name] = torch.cat([state.pop(f"mid_block.attentions.0.to_{part}.{kind}") for part in "qkv"])
        else:
            own[name] = state.pop(diffusers_name(name))
    assert not state
    net.load_state_dict(own)


@pytest.mark.parametrize("in_channels", [4, 16])
def test_the_ladder_starts_at_the_decoder_of_sdxl_and_sd3(in_channels: int) -> None:
    widths = (32, 64, 96, 96)
    theirs, ours = diffusers_decoder(widths, in_channels), sd3_of(widths, in_channels)
    randomise(theirs)
    copy_from_diffusers(ours, theirs)
    assert parameters(ours) == parameters(theirs)
    raw_BCHW = torch.randn(2, in_channels, 6, 5)
    with torch.no_grad():
        expected_BCHW, actual_BCHW = theirs(raw_BCHW), ours(raw_BCHW)
    assert actual_BCHW.shape == (2, 3, 48, 40)
    assert expected_BCHW.std() > 0.1
    assert (actual_BCHW - expected_BCHW).abs().max() < 1e-5 * expected_BCHW.abs().max()


@pytest.mark.parametrize("in_channels", [4, 16])
def test_at_full_width_it_counts_what_diffusers_does(in_channels: int) -> None:
    widths, latent_BCHW = (128, 256, 512, 512), torch.empty(1, in_channels, 128, 128)
    with torch.device("meta"):
        networks = sd3_of(widths, in_channels), diffusers_decoder(widths, in_channels)
    ours, theirs = (count_module(network, latent_BCHW, convention="decoder") for network in networks)
    assert ours == theirs


def test_the_reference_counts_what_was_published() -> None:
    with torch.device("meta"):
        cost = count_module(Decoder(), torch.empty(1, 16, 128, 128), convention="decoder")
    assert cost.params == 1_383_427
    assert cost.gmacs == pytest.approx(224.96, abs=0.005)


def test_the_reference_is_what_the_paper_states() -> None:
    with torch.device("meta"):
        net = Decoder()
    assert not any(isinstance(module, nn.GroupNorm) for module in net.stages.modules())
    dense = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d) and module.bias is not None]
    assert dense == ["conv_in", "output.2"]
    assert net.upsampling == 8


def test_a_block_of_the_reference_is_two_separable_convolutions_behind_activations() -> None:
    block = DecoderBlock(4, 4, "separable", shortcut=False, norm=False)
    randomise(block)
    x_BCHW = torch.randn(2, 4, 5, 6)
    h_BCHW = x_BCHW
    for name in ("conv1", "conv2"):
        depthwise, pointwise = (parameter.detach() for parameter in block.get_submodule(name).parameters())
        kernel = pointwise * depthwise[:, 0]  # of the dense convolution that both are
        h_BCHW = F.conv2d(F.silu(h_BCHW), kernel, padding=1)
    torch.testing.assert_close(block(x_BCHW), x_BCHW + h_BCHW)


@pytest.mark.parametrize(("shortcut", "beside"), [(False, False), (True, True)])
def test_where_the_width_changes_a_block_has_a_convolution_beside_it_or_nothing(shortcut: bool, beside: bool) -> None:
    block = DecoderBlock(4, 6, "separable", shortcut, norm=False)
    randomise(block)
    nn.init.zeros_(block.get_submodule("conv2.1").weight)  # type: ignore[arg-type]
    assert bool(block(torch.randn(1, 4, 3, 3)).any()) == beside


def test_it_neither_changes_its_input_nor_the_gradients_by_working_in_place() -> None:
    net, raw_BCHW = small_decoder().double(), torch.randn(1, 4, 3, 3, dtype=torch.double, requires_grad=True)
    given_BCHW = raw_BCHW.detach().clone()
    assert torch.autograd.gradcheck(net, raw_BCHW, fast_mode=True)
    assert torch.equal(raw_BCHW, given_BCHW)
    block, x_BCHW = net.stages[1], torch.randn(1, 32, 3, 3, dtype=torch.double)
    kept_BCHW = x_BCHW.clone()
    block(x_BCHW)
    assert torch.equal(x_BCHW, kept_BCHW)


def test_every_parameter_gets_a_gradient() -> None:
    net = small_decoder(middle_attention=True, shortcut=True)
    net(torch.randn(2, 4, 3, 3)).square().sum().backward()
    without = [name for name, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert without == []


def test_maps_stay_in_channels_last() -> None:
    net = small_decoder()
    seen: list[Tensor] = []
    for stage in net.stages:
        stage.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    net(torch.randn(1, 4, 4, 4))
    assert [tuple(x.shape[1:]) for x in seen] == [(32, 4, 4), (32, 8, 8), (64, 16, 16)]
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


def test_each_depthwise_convolution_widens_what_a_pixel_depends_on_by_one() -> None:
    """Of the stages, on their finest grid: 2 a block there, 2 * 2 + 1 one coarser, 4 * 4 + 2 at the latent's."""
    net = small_decoder().double()
    x_BCHW = torch.randn(1, 32, 17, 17, dtype=torch.double, requires_grad=True)
    h_BCHW = x_BCHW
    for stage in net.stages:
        h_BCHW = stage(h_BCHW)
    h_BCHW[0, :, 34, 34].sum().backward()
    assert x_BCHW.grad is not None
    rows = x_BCHW.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    # Backwards from row 34: 2 + 1 rows -> 31..37, halved 15..18; 2 + 1 -> 12..21, halved 6..10; 2 * 2 -> 2..14.
    assert (rows.min(), rows.max()) == (2, 14)


def test_the_same_weights_decode_latents_of_any_size() -> None:
    net = small_decoder()
    assert net(torch.randn(1, 4, 3, 7)).shape == (1, 3, 12, 28)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stages": []}, "stages is empty"),
        ({"middle_blocks": 0}, "middle_blocks is 0"),
        ({"stages": [Stage(32, 1), Stage(32, 0)]}, "stage 1: 32 channels, 0 blocks"),
        ({"stages": [Stage(40, 1), Stage(32, 1)]}, "a norm sees 40 channels; need a multiple of 32"),
        ({"stages": [Stage(32, 1), Stage(40, 1)]}, "a norm sees 40 channels"),
        ({"stages": [Stage(32, 1), Stage(40, 1), Stage(32, 1, norm=True)]}, "a norm sees 40 channels"),
    ],
)
def test_what_does_not_fit_together_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Decoder(**arguments)


def test_widths_that_no_norm_sees_are_free() -> None:
    net = Decoder([Stage(32, 1), Stage(5, 1), Stage(32, 1)])
    widths = [stage[-1].get_submodule("conv2.1").out_channels for stage in net.stages]
    assert [before != after for before, after in pairwise(widths)] == [True, True]
    assert net(torch.zeros(1, 16, 2, 2)).shape == (1, 3, 8, 8)
