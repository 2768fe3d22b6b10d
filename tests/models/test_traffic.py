from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_pl.models.count import count, count_module, denoiser_inputs
from snapgen_pl.models.traffic import Operation, traffic
from snapgen_pl.models.unet import Block, Stage, UNet


def moved(module: nn.Module, *inputs: Tensor, fused: bool = True) -> list[Operation]:
    return traffic(module, *(value.to("meta") for value in inputs)).operations(fused)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_convolution_an_activation_and_a_linear_layer_by_hand(inplace: bool) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(inplace), nn.Flatten(), nn.Linear(128, 10))
    image = torch.empty(1, 3, 4, 4)
    convolution = Operation("aten.convolution", 16 * 8 * 27, 2 * (48 + 216 + 8 + 128))
    linear = Operation("aten.addmm", 1280, 2 * (128 + 1280 + 10 + 10))
    assert moved(network, image) == [convolution, linear]
    apart = moved(network, image, fused=False)
    assert apart[::2] == [convolution, linear]
    assert (apart[1].macs, apart[1].bytes) == (0, 2 * (128 + 128))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)

    def forward(self, x_BC: Tensor) -> Tensor:
        y_BC = self.first(x_BC)
        return y_BC + self.second(F.silu(y_BC))


def test_what_others_read_is_written_though_an_activation_follows() -> None:
    first, second = moved(Residual(), torch.empty(4, 8))
    assert first.bytes == 2 * (32 + 64 + 32 + 32)  # x, weight; y for the sum, and its activation
    assert second.bytes == 2 * (32 + 64 + 32 + 32)  # the activation, weight, y; the sum


class Free(nn.Module):
    """Views, copies, and what depends on weights alone, around one product."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(8, 8))

    def forward(self, x_BC: Tensor) -> Tensor:
        return x_BC.t().contiguous().view(2, -1).reshape(8, 4).t() @ (self.gain.exp() * 2).t()


def test_views_copies_and_constants_are_free() -> None:
    assert moved(Free(), torch.empty(4, 8), fused=False) == [Operation("aten.mm", 4 * 64, 2 * (32 + 64 + 32))]


def test_a_table_is_read_as_far_as_it_is_gathered() -> None:
    (gathered,) = moved(nn.Embedding(1000, 8), torch.zeros(1, 5, dtype=torch.long))
    assert gathered.bytes == 2 * (5 + 40 + 40)


class Square(nn.Module):
    def forward(self, x_BC: Tensor) -> Tensor:
        return x_BC * x_BC


def test_an_operand_given_twice_is_read_once() -> None:
    assert moved(Square(), torch.empty(4, 8)) == [Operation("aten.mul", 0, 2 * (32 + 32))]


def test_a_network_has_the_macs_that_are_counted_of_it_and_more_in_a_larger_image() -> None:
    with torch.device("meta"):
        stages = [
            Stage(64, down=[Block()], up=[Block()] * 2),
            Stage(128, down=[Block(layers=1)], up=[Block(layers=1)] * 2, self_attention=True),
        ]
        unet = UNet(stages, context_dim=32)
    before = (0, 0)
    for size in (8, 16, 32):
        seen = traffic(unet, *denoiser_inputs(unet, size, tokens=7))
        fused, apart = seen.operations(fused=True), seen.operations(fused=False)
        totals = [(sum(each.macs for each in one), sum(each.bytes for each in one)) for one in (fused, apart)]
        assert totals[0][0] == totals[1][0] == count(unet, size, tokens=7).macs
        assert totals[0][1] < totals[1][1]
        assert all(large > small for small, large in zip(before, totals[0], strict=True))
        before = totals[0]


def test_weights_are_read_once_however_large_the_image() -> None:
    convolution = nn.Conv2d(4, 4, 1, bias=False)
    sides = (8, 16, 32)
    bytes_ = [moved(convolution, torch.empty(1, 4, side, side))[0].bytes for side in sides]
    assert bytes_ == [2 * (16 + 8 * side**2) for side in sides]
    assert all(count_module(convolution, torch.empty(1, 4, side, side)).macs == 16 * side**2 for side in sides)
    assert all(small < large for small, large in pairwise(bytes_))
