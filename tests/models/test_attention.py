import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snapgen_pl.models.attention import ContextProjection, RMSNorm, SelfAttention, attend, rotary_table, rotate

CPU = torch.device("cpu")


@given(st.integers(1, 4), st.sampled_from([1, 2, 4]), st.integers(1, 9), st.integers(1, 9))
def test_grouped_attention_equals_repeated_heads(batch: int, kv_heads: int, queries: int, keys: int) -> None:
    torch.manual_seed(batch * 100 + queries * 10 + keys)
    q = torch.randn(batch, 4, queries, 8, dtype=torch.float64)
    k, v = torch.randn(2, batch, kv_heads, keys, 8, dtype=torch.float64)
    k4, v4 = (part.repeat_interleave(4 // kv_heads, dim=1) for part in (k, v))
    weights = (q @ k4.transpose(-1, -2) / math.sqrt(8)).softmax(-1)
    expected = (weights @ v4).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attend(q, k, v), expected)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(-3, 3), st.integers(-3, 3))
def test_rotated_products_depend_on_offsets_alone(row: int, column: int, down: int, right: int) -> None:
    torch.manual_seed(0)
    table = rotary_table(12, 12, 16, CPU)
    q, k = torch.randn(2, 1, 1, 1, 16)
    q_all, k_all = (rotate(x.expand(1, 144, 1, 16), table)[0, :, 0] for x in (q, k))

    def product(at: tuple[int, int], offset: tuple[int, int]) -> torch.Tensor:
        return q_all[at[0] * 12 + at[1]] @ k_all[(at[0] + offset[0]) * 12 + at[1] + offset[1]]

    torch.testing.assert_close(product((3, 3), (down, right)), product((row + 3, column + 3), (down, right)))


def test_rows_and_columns_turn_different_halves() -> None:
    cos, sin = rotary_table(3, 4, 16, CPU)
    assert torch.equal(cos[:, :8], cos[:, 8:])
    assert torch.equal(-sin[:, :8], sin[:, 8:])
    angle = torch.atan2(sin, cos)[:, 8:].view(3, 4, 8)
    assert torch.equal(angle[:, 0, 4:], torch.zeros(3, 4))
    assert torch.equal(angle[0, :, :4], torch.zeros(4, 4))
    torch.testing.assert_close(angle[2, 0, :4], 2 * 10_000.0 ** (-torch.arange(4) / 4))


@given(st.integers(1, 6), st.integers(1, 6), st.integers(2, 4))
def test_scaled_positions_lie_around_those_of_the_coarser_grid(height: int, width: int, factor: int) -> None:
    """A cell's position is the mean of those that it is divided into; the first frequency turns by it alone."""

    def positions(height: int, width: int, step: float) -> torch.Tensor:
        cos, sin = rotary_table(height, width, 16, CPU, step)
        return torch.atan2(sin, cos)[:, 8::4].view(height, width, 2)

    step = 0.2  # no angle reaches pi
    fine = positions(factor * height, factor * width, step / factor)
    cells = fine.unfold(0, factor, factor).unfold(1, factor, factor).mean(dim=(-1, -2))
    torch.testing.assert_close(cells, positions(height, width, step))
    torch.testing.assert_close(fine, -fine.flip(0, 1))  # around the centre


def test_tables_are_computed_once_a_size() -> None:
    assert rotary_table(5, 6, 16, CPU)[0] is rotary_table(5, 6, 16, CPU)[0]


def test_turning_is_an_isometry() -> None:
    x = torch.randn(2, 20, 3, 16)
    torch.testing.assert_close(rotate(x, rotary_table(4, 5, 16, CPU)).norm(dim=-1), x.norm(dim=-1))


@pytest.mark.parametrize("qk_norm", [True, False])
def test_query_and_key_norms_take_out_their_scale(qk_norm: bool) -> None:
    torch.manual_seed(0)
    attention = SelfAttention(32, heads=2, kv_heads=1, head_dim=16, qk_norm=qk_norm)
    x = torch.randn(1, 6, 32)
    before = attention(x, None)
    with torch.no_grad():
        attention.qkv.weight[: 3 * 16] *= 7  # queries and keys, not values
    assert torch.allclose(before, attention(x, None), atol=1e-4) == qk_norm


def test_context_projection_equals_one_projection_a_layer() -> None:
    torch.manual_seed(0)
    heads, tokens = [1, 3, 2], torch.randn(2, 5, 12)
    context = ContextProjection(12, heads, head_dim=8, qk_norm=True)
    gains = torch.nn.init.uniform_(context.k_gains) if context.k_gains is not None else torch.ones(())
    keys, values = context(tokens)
    assert [key.shape[1] for key in keys] == heads
    k_weight, v_weight = context.kv.weight.split(6 * 8)
    start = 0
    for layer, count in enumerate(heads):
        rows = slice(start * 8, (start + count) * 8)
        start += count
        k = (tokens @ k_weight[rows].T).unflatten(-1, (count, 8)).transpose(1, 2)
        k = k / (k.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gains[layer]
        v = (tokens @ v_weight[rows].T).unflatten(-1, (count, 8)).transpose(1, 2)
        torch.testing.assert_close(keys[layer], k)
        torch.testing.assert_close(values[layer], v)


def test_tables_made_in_inference_mode_serve_training() -> None:
    attention = SelfAttention(32, heads=2, kv_heads=1, head_dim=16, qk_norm=True)
    with torch.inference_mode():
        attention(torch.randn(1, 21, 32), rotary_table(3, 7, 16, CPU))
    attention(torch.randn(1, 21, 32), rotary_table(3, 7, 16, CPU)).sum().backward()


def test_rms_norm_is_torchs_with_gains_in_the_inputs_type() -> None:
    torch.manual_seed(0)
    ours, torchs = RMSNorm(16, eps=1e-6), torch.nn.RMSNorm(16, eps=1e-6)
    torch.nn.init.normal_(torchs.weight)
    ours.load_state_dict(torchs.state_dict())
    x = torch.randn(3, 5, 16)
    assert torch.equal(ours(x), torchs(x))

    halved = torch.nn.RMSNorm(16, eps=1e-6, dtype=torch.bfloat16)
    halved.load_state_dict(torchs.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        made = ours(x.bfloat16())
    assert made.dtype == torch.bfloat16
    assert torch.equal(made, halved(x.bfloat16()))
