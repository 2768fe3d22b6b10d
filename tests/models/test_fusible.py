"""snapgen_pl.models.fusible: what torch's own operations say, and gradients that stay in channels_last."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from snapgen_pl.models.fusible import compiled, depthwise, doubled, group_norm, joined, linear_halves

Operation = Callable[..., Tensor]
GROUPS, CHANNELS = 4, 12


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def a_map(channels: int = CHANNELS) -> Tensor:
    return (3 + 2 * torch.randn(2, channels, 6, 5)).to(memory_format=torch.channels_last)


def product(x_BCHW: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.cat(linear_halves(x_BCHW.permute(0, 2, 3, 1), weight, bias), dim=-1)


# Ours, torch's, and what they take besides a map.
CASES: dict[str, tuple[Operation, Operation, Callable[[], list[Tensor]]]] = {
    "group norm": (
        lambda x, weight, bias: group_norm(x, weight, bias, GROUPS, 1e-5),
        lambda x, weight, bias: F.group_norm(x, GROUPS, weight, bias, 1e-5),
        lambda: [torch.randn(CHANNELS), torch.randn(CHANNELS)],
    ),
    "depthwise": (
        depthwise,
        lambda x, weight: F.conv2d(x, weight, padding=1, groups=CHANNELS),
        lambda: [torch.randn(CHANNELS, 1, 3, 3)],
    ),
    "joined": (joined, lambda x, skip: torch.cat((x, skip), dim=1), lambda: [a_map(7)]),
    "doubled": (doubled, lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"), list),
    "linear halves": (
        product,
        lambda x, weight, bias: F.linear(x.permute(0, 2, 3, 1), weight, bias),
        lambda: [torch.randn(8, CHANNELS), torch.randn(8)],
    ),
}


def result_and_gradients(operation: Operation, inputs: list[Tensor]) -> list[Tensor]:
    """The gradients of a weighted sum, so that each number of the result has its own."""
    inputs = [each.detach().requires_grad_() for each in inputs]
    out = operation(*inputs)
    weights = torch.empty_like(out).copy_(torch.linspace(-1, 1, out.numel()).view(out.shape))  # in the same layout
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), inputs)]


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_results_and_gradients_are_those_of_torch(case: str, traced: bool) -> None:
    """Traced too: what autograd is told by hand, compilers have got wrong where a cast did nothing."""
    torch.manual_seed(0)
    ours, theirs, others = CASES[case]
    inputs = [a_map(), *others()]
    if traced:
        ours = torch.compile(ours, backend="aot_eager", fullgraph=True, dynamic=False)
    for own, wanted in zip(result_and_gradients(ours, inputs), result_and_gradients(theirs, inputs), strict=True):
        torch.testing.assert_close(own, wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_in_bf16_they_are_as_near_as_torch(case: str) -> None:
    torch.manual_seed(0)
    ours, theirs, others = CASES[case]
    inputs = [a_map(), *others()]
    wanted = result_and_gradients(theirs, inputs)
    lowered = [each.bfloat16() for each in inputs]
    compiled_ours = torch.compile(ours, backend="aot_eager", fullgraph=True, dynamic=False)
    for own, each in zip(result_and_gradients(compiled_ours, lowered), wanted, strict=True):
        assert own.dtype == torch.bfloat16
        assert (own.float() - each).norm() < 0.02 * each.norm()


@pytest.mark.parametrize("case", [name for name in CASES if name != "linear halves"])
def test_maps_and_their_gradients_stay_in_channels_last(case: str) -> None:
    ours, _, others = CASES[case]
    out, *gradients = result_and_gradients(ours, [a_map(), *others()])
    assert out.is_contiguous(memory_format=torch.channels_last)
    maps = [gradient for gradient in gradients if gradient.dim() == 4 and len(gradient) == 2]
    assert maps
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in maps)


def test_they_are_for_compilers_and_gradients_alone() -> None:
    def told(x: Tensor) -> Tensor:
        return x + 1 if compiled() else x - 1

    x = torch.zeros(())
    assert told(x) == -1
    traced = torch.compile(told, backend="eager", fullgraph=True)
    assert traced(x) == 1
    with torch.no_grad():
        assert traced(x) == -1
        assert torch.export.export(Told(told), (x,)).module()(x) == -1
    assert torch.export.export(Told(told), (x,)).module()(x) == -1


class Told(torch.nn.Module):
    def __init__(self, operation: Operation) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(x)
