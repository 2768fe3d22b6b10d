from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from snapgen_pl.flow.guidance import Guidance, guided_velocity
from snapgen_pl.flow.path import sample_path
from snapgen_pl.flow.samplers import Euler
from snapgen_pl.models.count import count
from snapgen_pl.models.denoiser import Conditioning, PreparedConditioning
from snapgen_pl.models.mmdit import MMDiT

SMALL: dict[str, Any] = {
    "in_channels": 4,
    "layers": 3,
    "heads": 2,
    "head_dim": 8,
    "context_dim": 12,
    "pooled_dim": 10,
    "latent_size": 8,
    "largest_grid": 6,
}
# transformer/config.json of stabilityai/stable-diffusion-3.5-large.
LARGE = {
    "_class_name": "SD3Transformer2DModel",
    "attention_head_dim": 64,
    "caption_projection_dim": 2432,
    "in_channels": 16,
    "joint_attention_dim": 4096,
    "num_attention_heads": 38,
    "num_layers": 38,
    "out_channels": 16,
    "patch_size": 2,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "qk_norm": "rms_norm",
    "sample_size": 128,
}
HEIGHT, WIDTH = 3, 5  # in patches


def small(**options: Any) -> MMDiT:
    """A small one whose zero-initialised parts are drawn too, so that every weight matters."""
    torch.manual_seed(0)
    mmdit = MMDiT(**(SMALL | options))
    for parameter in mmdit.parameters():
        nn.init.normal_(parameter, std=0.3)
    return mmdit.eval()


SHARED = small()


def inputs() -> tuple[Tensor, Tensor, Conditioning]:
    torch.manual_seed(1)
    x_BCHW = torch.randn(2, 4, 2 * HEIGHT, 2 * WIDTH)
    return x_BCHW, torch.tensor([0.1, 0.9]), Conditioning(torch.randn(2, 7, 12), None, torch.randn(2, 10))


def diffusers_network(mmdit: MMDiT) -> Any:
    """The same network, made by diffusers alone."""
    network = type(mmdit.network).from_config(dict(mmdit.network.config)).eval()
    network.load_state_dict(mmdit.network.state_dict())
    return network


def test_the_published_size() -> None:
    with torch.device("meta"):
        large, defaults = MMDiT.from_config(LARGE), MMDiT()
    for network in (large, defaults):
        assert sum(parameter.numel() for parameter in network.parameters()) == 8_056_627_520
    assert (large.in_channels, large.context_dim, large.pooled_dim) == (16, 4096, 2048)
    assert large.feature_channels["block.37"] == 2432
    assert large.feature_strides["block.37"] == 2
    assert len(large.feature_names) == 38


@pytest.mark.parametrize("options", [{}, {"qk_norm": False}, {"dual_attention_layers": (0, 1)}], ids=str)
def test_equals_diffusers_network_called_directly(options: dict[str, Any]) -> None:
    mmdit = small(**options)
    theirs = diffusers_network(mmdit)
    x_BCHW, t_B, conditioning = inputs()
    with torch.no_grad():
        expected = theirs(x_BCHW, conditioning.tokens_BSD, conditioning.pooled_BP, 1000 * t_B).sample
        velocity = mmdit(x_BCHW, t_B, conditioning).velocity_BCHW
    assert expected.std() > 0.1
    assert torch.equal(velocity, expected)


@pytest.mark.parametrize("options", [{}, {"qk_norm": False, "dual_attention_layers": (0, 2)}], ids=str)
def test_a_saved_configuration_is_the_arguments(options: dict[str, Any]) -> None:
    made = small(**options)
    read = MMDiT.from_config(dict(made.network.config) | {"_class_name": "SD3Transformer2DModel"})
    assert dict(read.network.config) == dict(made.network.config)
    read.load_state_dict(made.state_dict())
    older = {key: value for key, value in LARGE.items() if key != "qk_norm"}  # SD3's, which does not say it
    with torch.device("meta"):
        assert MMDiT.from_config(older | {"num_layers": 1}).network.config.qk_norm is None


def test_times_and_velocities_are_those_of_sd3s_scheduler() -> None:
    steps, shift = 4, 3.0
    scheduler = import_module("diffusers").FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    noise_BCHW, _, conditioning = inputs()
    data_BCHW = torch.randn_like(noise_BCHW)
    at = scheduler.timesteps[[1, 2]]
    mixed = sample_path(data_BCHW, noise_BCHW, at / 1000)
    torch.testing.assert_close(scheduler.scale_noise(data_BCHW, at, noise_BCHW), mixed.x_BCHW)

    theirs, x_BCHW = diffusers_network(SHARED), noise_BCHW
    with torch.no_grad():
        for t in scheduler.timesteps:
            said = theirs(x_BCHW, conditioning.tokens_BSD, conditioning.pooled_BP, t.expand(2)).sample
            x_BCHW = scheduler.step(said, t, x_BCHW).prev_sample
        velocity = guided_velocity(SHARED, conditioning, conditioning, Guidance())
        ours = Euler(steps, shift=shift)(velocity, noise_BCHW, lambda step: noise_BCHW)
    assert (x_BCHW - noise_BCHW).std() > 0.1
    torch.testing.assert_close(ours, x_BCHW, atol=1e-4, rtol=1e-4)
    # One step of the true velocity from noise is the data.
    scheduler.set_timesteps(sigmas=[1.0])
    one = scheduler.step(noise_BCHW - data_BCHW, scheduler.timesteps[0], noise_BCHW).prev_sample
    torch.testing.assert_close(one, data_BCHW)


def test_features_are_the_blocks_image_tokens_row_by_row() -> None:
    theirs, tokens = diffusers_network(SHARED), {}
    for index, block in enumerate(theirs.transformer_blocks):
        block.register_forward_hook(lambda _, __, out, name=f"block.{index}": tokens.update({name: out[1]}))
    x_BCHW, t_B, conditioning = inputs()
    names = ("block.2", "block.0")
    with torch.no_grad():
        theirs(x_BCHW, conditioning.tokens_BSD, conditioning.pooled_BP, 1000 * t_B)
        output = SHARED(x_BCHW, t_B, conditioning, features=names)
    assert torch.equal(output.velocity_BCHW, SHARED(x_BCHW, t_B, conditioning).velocity_BCHW)
    for name, feature in zip(names, output.features, strict=True):
        assert feature.shape == (2, SHARED.feature_channels[name], HEIGHT, WIDTH)
        for row in range(HEIGHT):
            for column in range(WIDTH):
                assert torch.equal(feature[:, :, row, column], tokens[name][:, row * WIDTH + column])


def test_a_feature_moves_most_where_its_patch_does() -> None:
    x_BCHW, t_B, conditioning = inputs()
    moved = x_BCHW.clone()
    moved[:, :, 2:4, 6:8] += 3
    with torch.no_grad():
        (before,), (after,) = (SHARED(x, t_B, conditioning, features=("block.0",)).features for x in (x_BCHW, moved))
    change_BHW = (after - before).norm(dim=1)
    assert all(divmod(int(change.argmax()), WIDTH) == (1, 3) for change in change_BHW)


def test_masked_tokens_do_not_matter() -> None:
    x_BCHW, t_B, conditioning = inputs()
    mask_BS = torch.tensor([[True] * 4 + [False] * 3] * 2)
    other = conditioning.tokens_BSD.clone()
    other[:, 4:] = 9
    zeroed = conditioning.tokens_BSD.clone()
    zeroed[:, 4:] = 0
    with torch.no_grad():
        velocities = [
            SHARED(x_BCHW, t_B, conditioning._replace(tokens_BSD=tokens, mask_BS=mask)).velocity_BCHW
            for tokens, mask in ((conditioning.tokens_BSD, mask_BS), (other, mask_BS), (zeroed, None))
        ]
        unmasked = SHARED(x_BCHW, t_B, conditioning).velocity_BCHW
    assert torch.equal(velocities[0], velocities[1])
    assert torch.equal(velocities[0], velocities[2])
    assert not torch.allclose(velocities[0], unmasked)


def test_prepared_conditioning_gives_the_same_velocity() -> None:
    x_BCHW, t_B, conditioning = inputs()
    with torch.no_grad():
        prepared = SHARED(x_BCHW, t_B, SHARED.prepare(conditioning)).velocity_BCHW
        assert torch.equal(prepared, SHARED(x_BCHW, t_B, conditioning).velocity_BCHW)


def test_starts_at_a_zero_velocity_with_blocks_that_add_nothing() -> None:
    torch.manual_seed(0)
    mmdit = MMDiT(**SMALL, dual_attention_layers=(0,))
    x_BCHW, t_B, conditioning = inputs()
    output = mmdit(x_BCHW, t_B, conditioning, features=("block.0", "block.2"))
    assert torch.equal(output.velocity_BCHW, torch.zeros_like(x_BCHW))
    assert torch.equal(output.features[0], output.features[1])


def test_gradients_reach_every_parameter() -> None:
    mmdit = small(dual_attention_layers=(0,))
    x_BCHW, t_B, conditioning = inputs()
    mmdit(x_BCHW, t_B, conditioning).velocity_BCHW.square().mean().backward()
    trained = {name: p for name, p in mmdit.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.any()] == []
    thrown_away = {name.removeprefix("network.transformer_blocks.2.attn.") for name, _ in mmdit.named_parameters()
                   if name not in trained}  # fmt: skip
    assert thrown_away == {"add_q_proj.weight", "add_q_proj.bias", "norm_added_q.weight"}


def test_autocast_gives_the_same_velocity_to_bf16() -> None:
    with torch.no_grad():
        exact = SHARED(*inputs()).velocity_BCHW
        with torch.autocast("cpu", torch.bfloat16):
            rough = SHARED(*inputs()).velocity_BCHW.float()
    assert 0 < (rough - exact).norm() / exact.norm() < 0.05


def test_it_is_counted_with_its_pooled_vector() -> None:
    width, patches, tokens = 16, 16, 7
    ends = patches * width * 16 * 2 + tokens * 12 * width + (10 + 256 + 3 * width + width) * width
    attention = 2 * (patches + tokens) ** 2 * width
    image, text = ((6 + 12 * length) * width**2 for length in (patches, tokens))
    last = (6 + 2 + 12 * patches + 3 * tokens) * width**2  # its text is attended to, and goes no further
    cost = count(SHARED, size=8, tokens=tokens)
    assert cost.macs == ends + 2 * (image + text) + last + 3 * attention
    assert cost.params == sum(parameter.numel() for parameter in SHARED.parameters())
    observed = count(SHARED, size=8, tokens=tokens, observed=("block.1", "block.0"))
    norm_and_projection = 2 * width**2 + patches * width * 16
    assert observed.macs == ends - norm_and_projection + 2 * (image + text) + 2 * attention


def test_its_units_are_its_blocks() -> None:
    units = list(SHARED.units())
    inside = {id(parameter) for unit in units for parameter in unit.parameters()}
    outside = {name.split(".")[1] for name, p in SHARED.named_parameters() if id(p) not in inside}
    assert outside == {"pos_embed", "time_text_embed", "context_embedder", "norm_out", "proj_out"}
    assert len(units) == 3


def test_bad_input_is_refused_with_the_remedy() -> None:
    x_BCHW, t_B, conditioning = inputs()
    with pytest.raises(ValueError, match="needs a pooled vector of width 10"):
        SHARED(x_BCHW, t_B, conditioning._replace(pooled_BP=None))
    with pytest.raises(ValueError, match=r"unknown features \['block.3'\]; MMDiT has"):
        SHARED(x_BCHW, t_B, conditioning, features=("block.3",))
    with pytest.raises(ValueError, match=r"prepare\(\)"):
        SHARED(x_BCHW, t_B, PreparedConditioning())
    with pytest.raises(ValueError, match="6x9 is not tiled by patches of 2"):
        SHARED(x_BCHW[..., :9], t_B, conditioning)
    with pytest.raises(ValueError, match="6x14 is larger than 6 patches of 2"):
        SHARED(torch.randn(2, 4, 6, 14), t_B, conditioning)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 1, "head_dim": 6}, "a width divisible by 4"),
        ({"layers": 0}, "layers 0"),
        ({"latent_size": 9}, "latent_size is 9; it must be a multiple of patch, 2"),
        ({"latent_size": 14}, "at most 6 patches, the largest_grid"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MMDiT(**(SMALL | arguments))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "FluxTransformer2DModel"}, "of a FluxTransformer2DModel, not of a SD3Transformer2DModel"),
        ({"sample_size": None, "num_layers": None}, "does not say num_layers, sample_size"),
        ({"qk_norm": "layer_norm"}, "qk_norm is layer_norm; MMDiT takes rms_norm"),
        ({"out_channels": 32}, "out_channels is 32; MMDiT takes 16"),
        ({"caption_projection_dim": 7}, "caption_projection_dim is 7; MMDiT takes 2432"),
    ],
)
def test_a_configuration_of_something_else_is_refused(changes: dict[str, Any], message: str) -> None:
    config = {key: value for key, value in (LARGE | changes).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        MMDiT.from_config(config)
