import re

import pytest
import torch
from torch import Tensor

from snapgen_pl.models.denoiser import Conditioning
from snapgen_pl.models.unet import REFERENCE, Block, Stage, UNet

SMALL = [
    Stage(32, down=[Block(residual=False, layers=1)] * 2),
    Stage(64, down=[Block(layers=1)] * 2, up=[Block(layers=1)] * 3, self_attention=True),
]


def small_unet(**overrides: object) -> UNet:
    torch.manual_seed(0)
    arguments = {"stages": SMALL, "middle_layers": 1, "context_dim": 24, "head_dim": 32} | overrides
    net = UNet(**arguments)  # type: ignore[arg-type]
    with torch.no_grad():  # leave the zero start, where every output is zero and any bug is hidden
        for parameter in net.parameters():
            if parameter.abs().max() == 0:
                parameter.normal_(std=0.05)
    return net


def inputs(batch: int = 2, size: int = 8, context_dim: int = 24) -> tuple[Tensor, Tensor, Conditioning]:
    torch.manual_seed(1)
    return torch.randn(batch, 4, size, size), torch.rand(batch), Conditioning(torch.randn(batch, 5, context_dim))


def parameters(net: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def test_the_reference_counts_what_was_published() -> None:
    with torch.device("meta"):
        assert parameters(UNet()) == 372_375_044
        assert parameters(UNet(in_channels=16, context_dim=2304)) == 379_508_240
        assert parameters(UNet(in_channels=16, context_dim=2048)) == pytest.approx(378.33e6, abs=0.01e6)


def test_it_starts_by_predicting_zero() -> None:
    net = UNet(stages=SMALL, middle_layers=1, context_dim=24, head_dim=32)
    assert torch.equal(net(*inputs()).velocity_BCHW, torch.zeros(2, 4, 8, 8))


def test_prepared_conditioning_equals_raw() -> None:
    net, (x, t, conditioning) = small_unet(), inputs()
    assert torch.equal(net(x, t, conditioning).velocity_BCHW, net(x, t, net.prepare(conditioning)).velocity_BCHW)


def test_a_masked_token_is_as_good_as_absent() -> None:
    net, (x, t, conditioning) = small_unet(), inputs()
    mask = torch.tensor([True, True, True, False, False]).expand(2, -1)
    masked = net(x, t, conditioning._replace(mask_BS=mask)).velocity_BCHW
    absent = net(x, t, Conditioning(conditioning.tokens_BSD[:, :3])).velocity_BCHW
    torch.testing.assert_close(masked, absent)
    assert not torch.allclose(masked, net(x, t, conditioning).velocity_BCHW)


def test_features_are_the_stages_outputs_in_the_order_asked_for() -> None:
    net, (x, t, conditioning) = small_unet(), inputs()
    assert net.feature_names == ("down.0", "down.1", "middle", "up.1", "up.0")
    output = net(x, t, conditioning, features=("up.0", "middle", "down.0"))
    assert [tuple(feature.shape) for feature in output.features] == [(2, 32, 8, 8), (2, 64, 4, 4), (2, 32, 8, 8)]
    velocity = net.conv_out(net.norm_out(output.features[0]))
    assert torch.equal(velocity, output.velocity_BCHW)
    with pytest.raises(ValueError, match=r"unknown features \['up\.9'\]"):
        net(x, t, conditioning, features=("up.9",))


def test_activation_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        net = small_unet(activation_checkpointing=checkpointing)
        net(*inputs()).velocity_BCHW.square().sum().backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_every_parameter_gets_a_gradient() -> None:
    net = small_unet(pooled_dim=7)
    x, t, conditioning = inputs()
    net(x, t, conditioning._replace(pooled_BP=torch.randn(2, 7))).velocity_BCHW.square().sum().backward()
    without = [name for name, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert without == []


def test_feature_maps_stay_in_channels_last() -> None:
    net, (x, t, conditioning) = small_unet(), inputs()
    output = net(x, t, conditioning, features=net.feature_names)
    for feature in (*output.features, output.velocity_BCHW):
        assert feature.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "stages is empty"),
        ([Stage(40)], "40 channels; need a multiple of 32"),
        ([Stage(64, up=[Block()] * 2)], "up needs 3 blocks"),
        ([Stage(64, down=[Block(residual=False, layers=0)] * 2)], "does nothing"),
        ([Stage(64), Stage(128, down=[Block(residual=False, layers=1)] * 2)], "changes 64 to 128 channels"),
    ],
)
def test_stages_that_do_not_fit_are_refused(stages: list[Stage], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet(stages=stages, head_dim=32)


def grids(rope_size: int | None, height: int, width: int) -> Tensor:
    _, t, conditioning = inputs()
    torch.manual_seed(2)
    velocity: Tensor = small_unet(rope_size=rope_size)(torch.randn(2, 4, height, width), t, conditioning).velocity_BCHW
    return velocity


@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 16), (16, 4)])
def test_scaled_positions_are_integers_on_latents_of_the_size_they_are_scaled_to(height: int, width: int) -> None:
    torch.testing.assert_close(grids(8, height, width), grids(None, height, width))


def test_scaled_positions_are_others_on_other_latents() -> None:
    assert not torch.allclose(grids(8, 16, 16), grids(None, 16, 16), atol=1e-4)
    # Twice the latent at twice the size to scale to has equal steps.
    torch.testing.assert_close(grids(16, 16, 16), grids(None, 16, 16))


@pytest.mark.parametrize("options", [{"rope": False, "rope_size": 8}, {"rope_size": 0}])
def test_a_size_to_scale_to_needs_positions(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"rope_size is \d, rope (True|False)"):
        small_unet(**options)


@pytest.mark.parametrize(("height", "width"), [(6, 14), (22, 2)])
def test_oblong_latents_train(height: int, width: int) -> None:
    """With odd grids in the lower stage, 3x7 and 11x1."""
    net, (_, t, conditioning) = small_unet(), inputs()
    x = torch.randn(2, 4, height, width)
    output = net(x, t, conditioning, features=net.feature_names)
    assert output.velocity_BCHW.shape == x.shape
    assert output.features[1].shape[2:] == (height // 2, width // 2)
    output.velocity_BCHW.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())


def test_a_pooled_vector_must_be_expected_and_given() -> None:
    x, t, conditioning = inputs()
    with pytest.raises(ValueError, match="pooled vector given: True, taken by this UNet: False"):
        small_unet()(x, t, conditioning._replace(pooled_BP=torch.zeros(2, 7)))
    with pytest.raises(ValueError, match="pooled vector given: False, taken by this UNet: True"):
        small_unet(pooled_dim=7)(x, t, conditioning)


def test_it_compiles_whole_and_once_a_shape() -> None:
    net, (x, t, conditioning) = small_unet(), inputs()
    graphs = 0

    def backend(graph: torch.fx.GraphModule, example_inputs: object) -> object:
        nonlocal graphs
        graphs += 1
        return graph.forward

    compiled = torch.compile(net, backend=backend, fullgraph=True, dynamic=False)
    for _ in range(3):
        output = compiled(x, torch.rand(2), conditioning).velocity_BCHW
    assert graphs == 1
    x16, _, _ = inputs(size=16)
    torch.testing.assert_close(compiled(x16, t, conditioning).velocity_BCHW, net(x16, t, conditioning).velocity_BCHW)
    assert graphs == 2
    assert output.shape == x.shape


def diffusers_name(name: str) -> str:
    """Our parameter names -> those of diffusers' UNet2DConditionModel; fused projections are handled apart."""
    name = re.sub(r"^down\.(\d)\.(\d)\.residual", r"down_blocks.\1.resnets.\2", name)
    name = re.sub(r"^down\.(\d)\.(\d)\.transformer", r"down_blocks.\1.attentions.\2", name)
    name = re.sub(r"^up\.(\d)\.(\d)\.residual", r"up_blocks.\1.resnets.\2", name)
    name = re.sub(r"^up\.(\d)\.(\d)\.transformer", r"up_blocks.\1.attentions.\2", name)
    name = re.sub(r"^middle\.(\d)\.residual", r"mid_block.resnets.\1", name)
    name = re.sub(r"^middle\.(\d)\.transformer", r"mid_block.attentions.\1", name)
    name = re.sub(r"^downsample\.(\d)", r"down_blocks.\1.downsamplers.0.conv", name)
    name = re.sub(r"^upsample\.(\d)\.conv", r"up_blocks.\1.upsamplers.0.conv", name)
    for ours, theirs in [
        ("shortcut", "conv_shortcut"),
        (".time.weight", ".time_emb_proj.weight"),
        (".time.bias", ".time_emb_proj.bias"),
        ("layers.", "transformer_blocks."),
        ("self_norm", "norm1"),
        ("cross_norm", "norm2"),
        ("ffn_norm", "norm3"),
        ("cross_attention.q.", "attn2.to_q."),
        ("cross_attention.out.", "attn2.to_out.0."),
        ("self_attention.out.", "attn1.to_out.0."),
        ("ffn.proj.", "ff.net.0.proj."),
        ("ffn.out.", "ff.net.2."),
        ("time.mlp.0", "time_embedding.linear_1"),
        ("time.mlp.2", "time_embedding.linear_2"),
        ("pooled.0", "add_embedding.linear_1"),
        ("pooled.2", "add_embedding.linear_2"),
        ("norm_out", "conv_norm_out"),
    ]:
        name = name.replace(ours, theirs)
    return name


def copy_from_diffusers(net: UNet, theirs: torch.nn.Module) -> None:
    state = theirs.state_dict()
    taken = set()

    def take(key: str) -> Tensor:
        taken.add(key)
        return state[key]

    # The order in which diffusers' modules run their cross-attention, and so of our fused key/value rows.
    order = [
        f"{block}.attentions.{j}"
        for block, attentions in (
            [(f"down_blocks.{i}", 2) for i in range(3)] + [("mid_block", 1)] + [(f"up_blocks.{i}", 3) for i in range(3)]
        )
        for j in range(attentions)
    ]
    layers = [
        f"{attention}.transformer_blocks.{k}.attn2"
        for attention in order
        for k in range(10)
        if f"{attention}.transformer_blocks.{k}.attn2.to_k.weight" in state
    ]
    own = {}
    for name in net.state_dict():
        if name == "context.kv.weight":
            keys = [take(f"{layer}.to_k.weight") for layer in layers]
            own[name] = torch.cat(keys + [take(f"{layer}.to_v.weight") for layer in layers])
        elif name.endswith("self_attention.qkv.weight"):
            prefix = diffusers_name(name.replace("self_attention.qkv.weight", "attn1"))
            own[name] = torch.cat([take(f"{prefix}.to_{part}.weight") for part in "qkv"])
        else:
            own[name] = take(diffusers_name(name))
    assert taken == set(state)
    net.load_state_dict(own)


@pytest.mark.parametrize("widths", [(32, 64, 96), pytest.param((256, 512, 896), marks=pytest.mark.slow)])
def test_the_thin_sdxl_baseline_is_diffusers_unet(widths: tuple[int, int, int]) -> None:
    from diffusers import UNet2DConditionModel

    head_dim = 64 if widths[0] == 256 else 32
    depths, width, context_dim, pooled_text = (0, 2, 4), widths[0], 2048, 1280
    theirs = UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=widths,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[max(1, depth) for depth in depths],
        attention_head_dim=tuple(w // head_dim for w in widths),
        cross_attention_dim=context_dim,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=pooled_text + 6 * 256,
    ).eval()
    stages = [
        Stage(w, down=[Block(layers=depth)] * 2, up=[Block(layers=depth)] * 3, self_attention=True)
        for w, depth in zip(widths, depths, strict=True)
    ]
    ours = UNet(
        stages=stages,
        middle_layers=4,
        context_dim=context_dim,
        pooled_dim=pooled_text + 6 * 256,
        convolution="dense",
        expansion=1,
        ffn_ratio=4,
        head_dim=head_dim,
        kv_heads=None,
        qk_norm=False,
        rope=False,
    )
    assert parameters(ours) == parameters(theirs)
    copy_from_diffusers(ours, theirs)
    torch.manual_seed(0)
    x, tokens, text = torch.randn(2, 4, 16, 16), torch.randn(2, 7, context_dim), torch.randn(2, pooled_text)
    time_ids, t = torch.tensor([[16.0, 16, 0, 0, 16, 16]]).expand(2, -1), torch.tensor([0.25, 0.8])
    with torch.no_grad():
        added = theirs.add_time_proj(time_ids.flatten()).view(2, -1)
        expected = theirs(x, 1000 * t, tokens, added_cond_kwargs={"text_embeds": text, "time_ids": time_ids}).sample
        pooled = torch.cat((text, added), dim=-1)
        actual = ours(x, t, Conditioning(tokens, pooled_BP=pooled)).velocity_BCHW
    assert expected.std() > 0.05
    assert (actual - expected).abs().max() < 1e-4
    if width == 256:
        assert parameters(ours) == 706_172_676


def test_the_reference_declares_what_the_paper_states() -> None:
    assert [stage.channels for stage in REFERENCE] == [256, 512, 896]
    assert [stage.self_attention for stage in REFERENCE] == [False, False, True]
