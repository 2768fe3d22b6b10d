from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from snapgen_pl.flow.guidance import Guidance, guided_velocity
from snapgen_pl.models.count import count
from snapgen_pl.models.denoiser import Conditioning, PreparedConditioning
from snapgen_pl.models.peers.ldm import LDM, ldm_unet

SMALL: dict[str, Any] = {"widths": (32, 64), "layers": 1, "heads": 2, "context_dim": 24}


def small(seed: int = 0) -> LDM:
    """A small LDM whose zero-initialised parts are drawn too, so that every weight matters."""
    torch.manual_seed(seed)
    ldm = LDM(**SMALL)
    for parameter in ldm.parameters():
        nn.init.normal_(parameter, std=0.1)
    return ldm.eval()


SHARED = small()  # it takes a while to make; no test changes it


def inputs(tokens: int = 1) -> tuple[Tensor, Tensor, Conditioning]:
    torch.manual_seed(1)
    return torch.randn(2, 4, 8, 8), torch.tensor([0.1, 0.9]), Conditioning(torch.randn(2, tokens, 24))


def test_the_published_totals() -> None:
    with torch.device("meta"):
        published, common = LDM(in_channels=3), LDM()
    cost = count(published, size=64, tokens=1)
    assert cost.params_m == pytest.approx(400.92, abs=0.005)
    assert cost.gmacs == pytest.approx(104.23, abs=0.005)
    assert cost.params_m == pytest.approx(400, rel=0.01)
    assert cost.gmacs == pytest.approx(104, rel=0.01)
    assert count(common, size=32, tokens=1).gmacs == pytest.approx(cost.gmacs / 4, rel=0.04)


def test_its_attention_is_the_papers() -> None:
    with torch.device("meta"):
        network = ldm_unet()
    heads = {m.to_q.out_features: m.heads for m in network.modules() if type(m).__name__ == "Attention"}
    assert heads == {384: 1, 576: 1, 960: 1}  # none at the finest resolution
    blocks = [type(m).__name__ for m in network.modules()].count("BasicTransformerBlock")
    assert blocks == 3 * (2 + 3) + 1


@pytest.mark.parametrize("masked", [False, True])
def test_equals_diffusers_network_called_directly(masked: bool) -> None:
    diffusers = import_module("diffusers")

    theirs = diffusers.UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
        cross_attention_dim=24,
    ).eval()
    theirs.load_state_dict(SHARED.network.state_dict())
    x_BCHW, t_B, conditioning = inputs(tokens=3)
    mask = torch.tensor([[True, False, True], [False, True, False]]) if masked else None
    with torch.no_grad():
        expected = theirs(x_BCHW, 1000 * t_B, conditioning.tokens_BSD, encoder_attention_mask=mask).sample
        velocity = SHARED(x_BCHW, t_B, conditioning._replace(mask_BS=mask)).velocity_BCHW
    assert expected.std() > 0.1
    assert torch.equal(velocity, expected)


def test_starts_at_a_zero_velocity_with_branches_that_add_nothing() -> None:
    torch.manual_seed(0)
    ldm = LDM(**SMALL)
    assert torch.equal(ldm(*inputs()).velocity_BCHW, torch.zeros(2, 4, 8, 8))
    first = ldm.network.get_submodule("down_blocks.1.attentions.0")
    x_BCHW = torch.randn(2, 64, 4, 4)
    (out_BCHW,) = first(x_BCHW, encoder_hidden_states=torch.randn(2, 1, 24), return_dict=False)
    assert torch.equal(out_BCHW, x_BCHW)


def test_prepared_conditioning_gives_the_same_velocity() -> None:
    x_BCHW, t_B, conditioning = inputs(tokens=3)
    conditioning = conditioning._replace(mask_BS=torch.tensor([[True, False, True]] * 2))
    with torch.no_grad():
        prepared = SHARED(x_BCHW, t_B, SHARED.prepare(conditioning)).velocity_BCHW
        assert torch.equal(prepared, SHARED(x_BCHW, t_B, conditioning).velocity_BCHW)


def test_guidance_batches_the_prepared_tokens() -> None:
    x_BCHW, _, conditioning = inputs(tokens=3)
    unconditional = Conditioning(torch.randn(2, 3, 24), torch.tensor([[True, False, False]] * 2))
    with torch.no_grad():
        guided = guided_velocity(SHARED, conditioning, unconditional, Guidance(2.0))(x_BCHW, 0.5)
        t_B = torch.full((2,), 0.5)
        one, other = (SHARED(x_BCHW, t_B, told).velocity_BCHW for told in (conditioning, unconditional))
    torch.testing.assert_close(guided, 2 * one - other, atol=1e-4, rtol=1e-4)


@settings(max_examples=15, deadline=None)
@given(kept=st.lists(st.booleans(), min_size=1, max_size=6).filter(any))
def test_a_masked_token_is_as_good_as_none(kept: list[bool]) -> None:
    x_BCHW, t_B, conditioning = inputs(tokens=len(kept))
    tokens, mask = conditioning.tokens_BSD, torch.tensor([kept, kept])
    with torch.no_grad():
        masked = SHARED(x_BCHW, t_B, Conditioning(tokens, mask)).velocity_BCHW
        without = SHARED(x_BCHW, t_B, Conditioning(tokens[:, torch.tensor(kept)])).velocity_BCHW
    torch.testing.assert_close(masked, without, atol=1e-4, rtol=1e-4)


def test_gradients_reach_every_parameter_that_can_matter() -> None:
    ldm = small()
    ldm(*inputs(tokens=2)).velocity_BCHW.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in ldm.parameters())


def test_autocast_gives_the_same_velocity_to_bf16() -> None:
    x_BCHW, t_B, conditioning = inputs()
    with torch.no_grad():
        exact = SHARED(x_BCHW, t_B, conditioning).velocity_BCHW
        with torch.autocast("cpu", torch.bfloat16):
            rough = SHARED(x_BCHW, t_B, conditioning).velocity_BCHW.float()
    assert (rough - exact).norm() / exact.norm() < 0.05


def test_its_units_hold_all_but_the_ends_and_the_time_embedding() -> None:
    units = list(SHARED.units())
    inside = {id(parameter) for unit in units for parameter in unit.parameters()}
    outside = {name.split(".")[1] for name, p in SHARED.named_parameters() if id(p) not in inside}
    assert outside == {"conv_in", "time_embedding", "conv_norm_out", "conv_out"}
    assert len(inside) == sum(len(list(unit.parameters())) for unit in units), "units must not overlap"


def test_bad_input_is_refused_with_the_remedy() -> None:
    x_BCHW, t_B, conditioning = inputs()
    with pytest.raises(ValueError, match=r"unknown features \['middle'\]; LDM has"):
        SHARED(x_BCHW, t_B, conditioning, features=("middle",))
    with pytest.raises(ValueError, match="no pooled vector"):
        SHARED(x_BCHW, t_B, conditioning._replace(pooled_BP=torch.randn(2, 3)))
    with pytest.raises(ValueError, match=r"prepare\(\)"):
        SHARED(x_BCHW, t_B, PreparedConditioning())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": (32, 48)}, r"width 48 in \[32, 48\]; need multiples of 32"),
        ({"widths": (32, 64), "heads": 3}, "multiples of 32 and of heads, 3"),
        ({"widths": (0,)}, "width 0"),
        ({"widths": ()}, "at least one of each"),
        ({"layers": 0}, "layers 0"),
        ({"heads": 0}, "heads 0"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ldm_unet(**arguments)
