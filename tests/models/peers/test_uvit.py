from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_pl.flow.guidance import Guidance, guided_velocity
from snapgen_pl.models.count import count
from snapgen_pl.models.denoiser import Conditioning, PreparedConditioning
from snapgen_pl.models.layers import sinusoid
from snapgen_pl.models.peers.uvit import UViT

HIDDEN, DEPTH, HEADS, SIZE, LABELS = 32, 5, 4, 8, 1001


def small(seed: int = 0, **arguments: Any) -> UViT:
    """A small U-ViT with weights large enough for every one to matter."""
    torch.manual_seed(seed)
    sizes = {"latent_size": SIZE, "hidden": HIDDEN, "depth": DEPTH, "heads": HEADS, "context_dim": HIDDEN}
    uvit = UViT(**{**sizes, **arguments})
    for parameter in uvit.parameters():
        nn.init.normal_(parameter, std=0.4)
    return uvit.eval()


def inputs(context_dim: int = HIDDEN, tokens: int = 1) -> tuple[Tensor, Tensor, Conditioning]:
    torch.manual_seed(1)
    return torch.randn(2, 4, SIZE, SIZE), torch.tensor([0.1, 0.9]), Conditioning(torch.randn(2, tokens, context_dim))


@pytest.mark.parametrize(
    ("arguments", "params_m", "gmacs"),
    [({"hidden": 1024, "depth": 21, "context_dim": 1024}, 287, 77), ({}, 501, 133)],
    ids=["L", "H"],
)
def test_the_published_totals(arguments: dict[str, Any], params_m: float, gmacs: float) -> None:
    with torch.device("meta"):
        uvit = UViT(**arguments)
    cost = count(uvit, size=32, tokens=1)
    assert cost.params_m == pytest.approx(params_m, rel=0.01)
    assert round(cost.params_m + LABELS * uvit.hidden / 1e6) == params_m
    assert cost.gmacs == pytest.approx(gmacs, rel=0.01)


def torch_block(block: nn.Module) -> nn.TransformerEncoderLayer:
    """The same block as torch's own pre-normalised encoder layer."""
    layer = nn.TransformerEncoderLayer(HIDDEN, HEADS, 4 * HIDDEN, 0.0, "gelu", batch_first=True, norm_first=True)
    names = {"attention_norm": "norm1", "mlp_norm": "norm2", "mlp.0": "linear1", "mlp.2": "linear2"}
    names |= {"out": "self_attn.out_proj"}
    state = block.state_dict()
    weights = {"self_attn.in_proj_weight": state["qkv.weight"], "self_attn.in_proj_bias": torch.zeros(3 * HIDDEN)}
    for ours, theirs in names.items():
        weights |= {f"{theirs}.{part}": state[f"{ours}.{part}"] for part in ("weight", "bias")}
    layer.load_state_dict(weights)
    return layer.eval()


def test_equals_torchs_encoder_layers_joined_by_skips() -> None:
    uvit = small()
    x_BCHW, t_B, conditioning = inputs()
    state = uvit.state_dict()
    columns = F.unfold(x_BCHW, 2, stride=2).transpose(1, 2) @ state["embed.weight"].flatten(1).T + state["embed.bias"]
    times = sinusoid(1000 * t_B, HIDDEN)[:, None]
    x = torch.cat((conditioning.tokens_BSD, times, columns), dim=1) + state["positions_SE"]
    with torch.no_grad():
        first, second, middle, fourth, last = map(torch_block, uvit.blocks)
        a = first(x)
        b = second(a)
        d = fourth(F.linear(torch.cat((middle(b), b), -1), state["blocks.3.skip.weight"], state["blocks.3.skip.bias"]))
        e = last(F.linear(torch.cat((d, a), -1), state["blocks.4.skip.weight"], state["blocks.4.skip.bias"]))
        patches = uvit.out(uvit.norm_out(e[:, 2:]))
        image = F.fold(
            patches.unflatten(2, (4, 4)).transpose(2, 3).flatten(2).transpose(1, 2), (SIZE, SIZE), 2, 1, 0, 2
        )
        expected = F.conv2d(image, state["conv_out.weight"], state["conv_out.bias"], padding=1)
        velocity = uvit(x_BCHW, t_B, conditioning).velocity_BCHW
    assert expected.std() > 0.1
    torch.testing.assert_close(velocity, expected, atol=1e-4, rtol=1e-4)


def test_every_skip_matters() -> None:
    x_BCHW, t_B, conditioning = inputs()
    whole = small()(x_BCHW, t_B, conditioning).velocity_BCHW
    for joined in (3, 4):
        uvit = small()
        weight = uvit.get_parameter(f"blocks.{joined}.skip.weight")
        with torch.no_grad():
            weight[:, HIDDEN:] = 0
        cut = uvit(x_BCHW, t_B, conditioning).velocity_BCHW
        assert (cut - whole).abs().max() > 0.01


def test_prepared_conditioning_gives_the_same_velocity() -> None:
    uvit = small(context_dim=24)
    x_BCHW, t_B, conditioning = inputs(context_dim=24, tokens=3)
    prepared = uvit.prepare(conditioning)
    assert torch.equal(uvit(x_BCHW, t_B, prepared).velocity_BCHW, uvit(x_BCHW, t_B, conditioning).velocity_BCHW)


def test_guidance_batches_the_prepared_tokens() -> None:
    uvit = small()
    x_BCHW, _, conditioning = inputs(tokens=3)
    unconditional = Conditioning(torch.randn(2, 3, HIDDEN), torch.tensor([[True, False, False]] * 2))
    with torch.no_grad():
        guided = guided_velocity(uvit, conditioning, unconditional, Guidance(2.0))(x_BCHW, 0.5)
        t_B = torch.full((2,), 0.5)
        one, other = (uvit(x_BCHW, t_B, told).velocity_BCHW for told in (conditioning, unconditional))
    torch.testing.assert_close(guided, 2 * one - other, atol=1e-4, rtol=1e-4)


@settings(max_examples=20, deadline=None)
@given(kept=st.lists(st.booleans(), min_size=1, max_size=6))
def test_a_masked_token_is_as_good_as_none(kept: list[bool]) -> None:
    uvit = small(context_dim=24)
    x_BCHW, t_B, conditioning = inputs(context_dim=24, tokens=len(kept))
    tokens, mask = conditioning.tokens_BSD, torch.tensor([kept, kept])
    with torch.no_grad():
        masked = uvit(x_BCHW, t_B, Conditioning(tokens, mask)).velocity_BCHW
        without = uvit(x_BCHW, t_B, Conditioning(tokens[:, torch.tensor(kept)])).velocity_BCHW
    torch.testing.assert_close(masked, without, atol=1e-4, rtol=1e-4)


def test_context_and_time_are_heard() -> None:
    uvit = small()
    x_BCHW, t_B, conditioning = inputs()
    velocity = uvit(x_BCHW, t_B, conditioning).velocity_BCHW
    for other in (
        uvit(x_BCHW, t_B.flip(0), conditioning),
        uvit(x_BCHW, t_B, Conditioning(conditioning.tokens_BSD.flip(0))),
    ):
        assert (other.velocity_BCHW - velocity).abs().amax(dim=(1, 2, 3)).min() > 0.01


def test_patches_see_where_they_are() -> None:
    _, t_B, conditioning = inputs()
    _, (grid,) = small()(torch.ones(2, 4, SIZE, SIZE), t_B, conditioning, features=("block.4",))
    corners = [grid[0, :, y, x] for y in (0, 3) for x in (0, 3)]
    assert not any(torch.allclose(corners[0], other, atol=1e-3) for other in corners[1:])


def test_features_are_the_blocks_outputs_at_the_patches_in_the_order_of_the_request() -> None:
    uvit = small()
    seen: list[Tensor] = []
    for block in uvit.blocks:
        block.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    _, (last, first) = uvit(*inputs(tokens=3), features=("block.4", "block.0"))
    assert last.shape == (2, HIDDEN, 4, 4)
    for grid, tokens in ((first, seen[0]), (last, seen[4])):
        assert torch.equal(grid[:, :, 2, 1], tokens[:, 3 + 1 + 2 * 4 + 1])


def test_gradients_reach_every_parameter_from_the_start() -> None:
    torch.manual_seed(0)
    uvit = UViT(latent_size=SIZE, hidden=HIDDEN, depth=DEPTH, heads=HEADS, context_dim=24)
    uvit(*inputs(context_dim=24)).velocity_BCHW.square().mean().backward()
    without = [name for name, p in uvit.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without
    assert uvit.positions_SE.grad is not None
    assert uvit.positions_SE.grad.abs().sum(dim=1).min() > 0


def test_autocast_gives_the_same_velocity_to_bf16() -> None:
    uvit = small()
    x_BCHW, t_B, conditioning = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        rough = uvit(x_BCHW, t_B, conditioning).velocity_BCHW.float()
    exact = uvit(x_BCHW, t_B, conditioning).velocity_BCHW
    assert (rough - exact).norm() / exact.norm() < 0.05


def test_its_units_are_its_blocks() -> None:
    uvit = small()
    assert list(uvit.units()) == list(uvit.blocks)


def test_the_cost_grows_with_depth_by_two_blocks_and_a_skip() -> None:
    sizes: dict[str, int] = {"latent_size": 16, "hidden": 64, "heads": 4, "context_dim": 64}
    with torch.device("meta"):
        costs = [count(UViT(depth=depth, **sizes), size=16, tokens=1) for depth in (1, 3, 5)]
    tokens, hidden = 64 + 2, 64
    pair = 2 * (tokens * 12 * hidden**2 + 2 * tokens**2 * hidden) + tokens * 2 * hidden**2
    assert [after.macs - before.macs for before, after in pairwise(costs)] == [pair, pair]


@pytest.mark.parametrize("shape", [(4, 16, 16), (4, 8, 6), (4, 6, 8)])
def test_a_latent_of_another_size_is_refused_with_the_remedy(shape: tuple[int, ...]) -> None:
    _, t_B, conditioning = inputs()
    with pytest.raises(ValueError, match=r"positions for 8x8; set latent_size"):
        small()(torch.randn(2, *shape), t_B, conditioning)


def test_bad_input_is_refused_with_the_remedy() -> None:
    uvit = small()
    x_BCHW, t_B, conditioning = inputs()
    with pytest.raises(ValueError, match="unknown features"):
        uvit(x_BCHW, t_B, conditioning, features=("block.9",))
    with pytest.raises(ValueError, match="no pooled vector"):
        uvit(x_BCHW, t_B, conditioning._replace(pooled_BP=torch.randn(2, 3)))
    with pytest.raises(ValueError, match=r"prepare\(\)"):
        uvit(x_BCHW, t_B, PreparedConditioning())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden": 30}, "hidden is 30; it must be even and a multiple of heads"),
        ({"hidden": 33, "heads": 3}, "hidden is 33; it must be even"),
        ({"depth": 4}, "depth is 4; it must be odd"),
        ({"depth": 0}, "depth is 0; it must be odd"),
        ({"latent_size": 9}, "latent_size is 9; it must be a positive multiple of patch, 2"),
        ({"latent_size": 0}, "latent_size is 0"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**arguments)
