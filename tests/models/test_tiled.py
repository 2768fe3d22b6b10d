from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from snapgen_pl.models.decoder import Decoder
from snapgen_pl.models.tiled import Axis, decode_tiled
from tests.models.test_decoder import small_decoder


@st.composite
def sides(draw: st.DrawFn) -> tuple[int, int, int]:
    """Length, tile, overlap."""
    tile = draw(st.integers(1, 24))
    return draw(st.integers(1, 80)), tile, draw(st.integers(0, tile // 2))


@given(sides(), st.integers(1, 8))
def test_shares_add_up_to_one_in_every_pixel(side: tuple[int, int, int], scale: int) -> None:
    length, tile, overlap = side
    axis = Axis.cover(length, tile, overlap)
    total = torch.zeros(scale * length)
    for start in axis.starts:
        weight = axis.weight(start, scale)
        assert (weight > 0).all()
        total[scale * start :][: len(weight)] += weight
    torch.testing.assert_close(total, torch.ones_like(total))


def test_shares_grow_linearly_over_an_overlap() -> None:
    axis = Axis.cover(20, tile=12, overlap=4)
    assert (axis.size, axis.starts) == (12, [0, 8])
    assert axis.weight(0, scale=1).tolist() == [1.0] * 8 + [7 / 8, 5 / 8, 3 / 8, 1 / 8]
    assert axis.weight(8, scale=1).tolist() == [1 / 8, 3 / 8, 5 / 8, 7 / 8] + [1.0] * 8


@given(sides())
def test_tiles_cover_a_side_overlap_enough_and_are_no_larger_or_more_than_needed(side: tuple[int, int, int]) -> None:
    length, tile, overlap = side
    axis = Axis.cover(length, tile, overlap)
    starts = axis.starts
    assert (starts[0], starts[-1] + axis.size) == (0, length)
    assert all(before + axis.size - after >= overlap for before, after in pairwise(starts))
    assert axis.size <= tile
    assert (len(starts) - 1) * (tile - overlap) + overlap < length or len(starts) == 1


@given(sides(), sides(), st.integers(1, 3))
def test_what_is_local_is_decoded_as_if_whole(
    rows: tuple[int, int, int], columns: tuple[int, int, int], s: int
) -> None:
    raw_BCHW = torch.randn(1, 3, rows[0] % 16 + 1, columns[0] % 16 + 1)

    def decode(part_BCHW: Tensor) -> Tensor:
        return F.interpolate(part_BCHW, scale_factor=float(s), mode="nearest")

    torch.testing.assert_close(decode_tiled(decode, raw_BCHW, rows[1], rows[2]), decode(raw_BCHW))


def convolutions(net: Decoder, raw_BCHW: Tensor) -> Tensor:
    """The decoder without its norms."""
    x = net.conv_in(raw_BCHW)
    for stage in net.stages:
        x = stage(x)
    image_BCHW: Tensor = net.get_submodule("output.2")(x)
    return image_BCHW


def test_convolutions_alone_give_the_whole_image_where_a_single_tile_lies() -> None:
    # On the latent's grid the small decoder sees 1 + 2 * 2, + (2 + 1) / 2, + (1 + 2 + 1) / 4 positions: at most 8.
    net, tile, overlap, scale = small_decoder(), 20, 8, 4
    raw_BCHW = torch.randn(1, 4, 20, 44)
    axis = Axis.cover(44, tile, overlap)
    assert (axis.size, axis.starts) == (20, [0, 12, 24])
    with torch.no_grad():
        whole_BCHW = convolutions(net, raw_BCHW)
        tiled_BCHW = decode_tiled(lambda part_BCHW: convolutions(net, part_BCHW), raw_BCHW, tile, overlap)
    error_W = (tiled_BCHW - whole_BCHW).abs().amax((0, 1, 2)) / whole_BCHW.std()
    alone = torch.zeros(scale * 44, dtype=torch.bool)
    for first, last in ((0, 12), (20, 24), (32, 44)):
        alone[scale * first : scale * last] = True
    assert error_W[alone].max() < 1e-4
    assert error_W[~alone].max() > 1e-2  # the zeros beyond a tile's edge are seen in the seams


def test_a_decoder_with_norms_gives_what_it_makes_of_each_tile_alone() -> None:
    net, raw_BCHW = small_decoder(), torch.randn(1, 4, 28, 12)
    with torch.no_grad():
        tiled_BCHW = decode_tiled(net, raw_BCHW, 16, 4)
        first_BCHW, whole_BCHW = net(raw_BCHW[:, :, :16]), net(raw_BCHW)
    alone = slice(0, 4 * 12)
    torch.testing.assert_close(tiled_BCHW[:, :, alone], first_BCHW[:, :, alone])
    assert (tiled_BCHW - whole_BCHW)[:, :, alone].abs().max() > 1e-3 * whole_BCHW.std()


def test_latents_that_fit_a_tile_are_decoded_whole_in_one_call() -> None:
    net, raw_BCHW, calls = small_decoder(), torch.randn(2, 4, 5, 8), 0

    def decode(part_BCHW: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return net(part_BCHW)

    with torch.no_grad():
        assert torch.equal(decode_tiled(decode, raw_BCHW, 8, 4), net(raw_BCHW))
    assert calls == 1


@pytest.mark.parametrize(("tile", "overlap"), [(8, 5), (8, -1), (0, 0), (1, 1)])
def test_overlaps_that_do_not_fit_are_refused(tile: int, overlap: int) -> None:
    with pytest.raises(ValueError, match=f"tile is {tile}, overlap {overlap}"):
        decode_tiled(small_decoder(), torch.randn(1, 4, 4, 4), tile, overlap)
