"""Requests, and what every drawer owes."""

import torch
from torch import Tensor

from snapgen_pl.data.requests import Request
from snapgen_pl.released.drawer import Drawer

CLASSES = 5


def request(*positions: int) -> Request:
    position_B = torch.tensor(positions)
    return Request(position_B % CLASSES, position_B)


def assert_images_depend_on_positions_alone(drawer: Drawer) -> None:
    """The same images in any batch and order, whatever the process has drawn; others at other positions and seeds."""
    torch.manual_seed(1)
    together = drawer.draw(3, request(0, 1, 2, 7))
    torch.manual_seed(2)
    torch.randn(5)
    apart = torch.cat([drawer.draw(3, request(7)), drawer.draw(3, request(2, 1, 0))]).flip(0)
    assert together.dtype == torch.uint8
    assert together.shape == (4, 3, drawer.image_size, drawer.image_size)
    # Convolutions of another batch size differ in the last bit.
    assert difference(together, apart) <= 1
    label = torch.zeros(2, dtype=torch.int64)
    one_class = drawer.draw(3, Request(label, torch.tensor([0, 5])))
    assert difference(one_class[:1], one_class[1:]) > 10
    assert difference(drawer.draw(3, request(0)), drawer.draw(4, request(0))) > 10


def assert_a_request_may_bring_its_guidance(own: Drawer, other: Drawer) -> None:
    """``other`` differs from ``own`` in guidance alone."""
    before = own.describe()
    guided = own.draw(3, request(0, 1), other.guidance)
    assert torch.equal(guided, other.draw(3, request(0, 1)))
    assert difference(guided, own.draw(3, request(0, 1))) > 1
    assert own.describe() == before != other.describe()


def difference(left: Tensor, right: Tensor) -> int:
    return int((left.int() - right.int()).abs().max())
