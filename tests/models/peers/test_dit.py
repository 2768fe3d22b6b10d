from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from snapgen_pl.models.denoiser import Conditioning, PreparedConditioning
from snapgen_pl.models.peers.dit import DiT

HIDDEN, DEPTH, HEADS, CLASSES = 32, 2, 4, 5


def small(seed: int = 0, **arguments: Any) -> DiT:
    """A small DiT whose zero-initialised parts are drawn too, so that every weight matters."""
    torch.manual_seed(seed)
    dit = DiT(**{"hidden": HIDDEN, "depth": DEPTH, "heads": HEADS, "context_dim": HIDDEN, **arguments})
    for parameter in dit.parameters():
        nn.init.normal_(parameter, std=0.2)
    return dit.eval()


def inputs(size: int = 8, context_dim: int = HIDDEN, tokens: int = 1) -> tuple[Tensor, Tensor, Conditioning]:
    torch.manual_seed(1)
    return torch.randn(2, 4, size, size), torch.tensor([0.1, 0.9]), Conditioning(torch.randn(2, tokens, context_dim))


def diffusers_weights(dit: DiT, labels: Tensor) -> dict[str, Tensor]:
    """The weights of ``dit`` under the names of diffusers' DiTTransformer2DModel."""
    state = dit.state_dict()

    def pair(theirs: str, ours: str) -> dict[str, Tensor]:
        return {f"{theirs}.{part}": state[f"{ours}.{part}"] for part in ("weight", "bias")}

    weights = pair("pos_embed.proj", "embed")
    weights |= pair("proj_out_1", "modulation_out") | pair("proj_out_2", "out")
    for i in range(DEPTH):
        theirs, ours = f"transformer_blocks.{i}", f"blocks.{i}"
        embedding = f"{theirs}.norm1.emb"
        weights |= pair(f"{embedding}.timestep_embedder.linear_1", "time.mlp.0")
        weights |= pair(f"{embedding}.timestep_embedder.linear_2", "time.mlp.2")
        weights[f"{embedding}.class_embedder.embedding_table.weight"] = labels
        weights |= pair(f"{theirs}.norm1.linear", f"{ours}.modulation")
        weights |= pair(f"{theirs}.attn1.to_out.0", f"{ours}.out")
        weights |= pair(f"{theirs}.ff.net.0.proj", f"{ours}.mlp.0") | pair(f"{theirs}.ff.net.2", f"{ours}.mlp.2")
        for part in ("weight", "bias"):
            split = state[f"{ours}.qkv.{part}"].chunk(3)
            weights |= {f"{theirs}.attn1.to_{name}.{part}": tensor for name, tensor in zip("qkv", split, strict=True)}
    return weights


@pytest.mark.parametrize("size", [8, 16])
def test_equals_diffusers_dit_with_the_same_weights(size: int) -> None:
    diffusers = import_module("diffusers")

    dit = small(learn_sigma=True)
    labels = torch.randn(CLASSES + 1, HIDDEN)
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HIDDEN // HEADS,
        in_channels=4,
        out_channels=8,
        num_layers=DEPTH,
        sample_size=size,
        num_embeds_ada_norm=CLASSES,
        norm_eps=1e-6,
    ).eval()
    theirs.load_state_dict(diffusers_weights(dit, labels))
    for block in theirs.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0  # the paper's frequencies; diffusers' differ a little

    x_BCHW, t_B, _ = inputs(size)
    label_B = torch.tensor([3, CLASSES])
    with torch.no_grad():
        expected = theirs(x_BCHW, timestep=1000 * t_B, class_labels=label_B).sample[:, :4]
        velocity = dit(x_BCHW, t_B, Conditioning(labels[label_B][:, None])).velocity_BCHW
    assert expected.std() > 0.1
    torch.testing.assert_close(velocity, expected, atol=1e-4, rtol=0)


def test_starts_at_a_zero_velocity_and_with_identity_blocks() -> None:
    dit = DiT(hidden=HIDDEN, depth=DEPTH, heads=HEADS, context_dim=HIDDEN)
    x_BCHW, t_B, conditioning = inputs()
    velocity, (first, last) = dit(x_BCHW, t_B, conditioning, features=("block.0", "block.1"))
    assert torch.equal(velocity, torch.zeros_like(x_BCHW))
    assert torch.equal(first, last)


def test_prepared_conditioning_gives_the_same_velocity() -> None:
    dit = small(context_dim=24)
    x_BCHW, t_B, conditioning = inputs(context_dim=24, tokens=3)
    prepared = dit.prepare(conditioning)
    assert torch.equal(dit(x_BCHW, t_B, prepared).velocity_BCHW, dit(x_BCHW, t_B, conditioning).velocity_BCHW)


@settings(max_examples=20, deadline=None)
@given(kept=st.lists(st.booleans(), min_size=1, max_size=6).filter(any))
def test_a_masked_token_has_no_influence(kept: list[bool]) -> None:
    dit = small(context_dim=24)
    x_BCHW, t_B, conditioning = inputs(context_dim=24, tokens=len(kept))
    tokens, mask = conditioning.tokens_BSD, torch.tensor([kept, kept])
    masked = dit(x_BCHW, t_B, Conditioning(tokens, mask)).velocity_BCHW
    without = dit(x_BCHW, t_B, Conditioning(tokens[:, torch.tensor(kept)])).velocity_BCHW
    torch.testing.assert_close(masked, without, atol=1e-5, rtol=1e-5)


def test_features_are_the_blocks_outputs_as_grids_in_the_order_of_the_request() -> None:
    dit = small()
    seen: list[Tensor] = []
    for block in dit.blocks:
        block.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    x_BCHW, t_B, conditioning = inputs()
    _, (last, first) = dit(x_BCHW[..., :6], t_B, conditioning, features=("block.1", "block.0"))
    assert last.shape == (2, HIDDEN, 4, 3)
    for grid, tokens in ((first, seen[0]), (last, seen[1])):
        assert torch.equal(grid[:, :, 2, 1], tokens[:, 2 * 3 + 1])


def test_patches_see_where_they_are() -> None:
    dit = small()
    _, t_B, conditioning = inputs()
    velocity = dit(torch.ones(2, 4, 8, 4), t_B, conditioning).velocity_BCHW
    corners = [velocity[0, :, y : y + 2, x : x + 2] for y in (0, 6) for x in (0, 2)]
    assert not any(torch.allclose(corners[0], other, atol=1e-3) for other in corners[1:])


def test_positions_made_in_inference_mode_serve_training() -> None:
    dit = small()
    x_BCHW, t_B, conditioning = inputs(size=12)
    with torch.inference_mode():
        dit(x_BCHW, t_B, conditioning)
    dit(x_BCHW, t_B, conditioning).velocity_BCHW.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in dit.parameters())


def test_autocast_gives_the_same_velocity_to_bf16() -> None:
    dit = small()
    x_BCHW, t_B, conditioning = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        rough = dit(x_BCHW, t_B, conditioning).velocity_BCHW.float()
    exact = dit(x_BCHW, t_B, conditioning).velocity_BCHW
    assert (rough - exact).norm() / exact.norm() < 0.05


def test_bad_input_is_refused_with_the_remedy() -> None:
    dit = small()
    x_BCHW, t_B, conditioning = inputs()
    with pytest.raises(ValueError, match="unknown features"):
        dit(x_BCHW, t_B, conditioning, features=("block.9",))
    with pytest.raises(ValueError, match="not tiled"):
        dit(x_BCHW[..., :7], t_B, conditioning)
    with pytest.raises(ValueError, match="no pooled vector"):
        dit(x_BCHW, t_B, conditioning._replace(pooled_BP=torch.randn(2, 3)))
    with pytest.raises(ValueError, match=r"prepare\(\)"):
        dit(x_BCHW, t_B, PreparedConditioning())
    with pytest.raises(ValueError, match="multiple of 4 and of heads"):
        DiT(hidden=30, heads=4)
