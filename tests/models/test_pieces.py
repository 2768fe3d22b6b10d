import pytest
import torch
from torch import Tensor, nn

from snapgen_pl.models.decoder import DecoderBlock, Stage
from snapgen_pl.models.layers import Convolution, Upsample
from snapgen_pl.models.pieces import decode_for_drawing, decode_in_pieces, doubled
from tests.models.test_decoder import randomise, small_decoder


@pytest.mark.parametrize("pixels", [1, 100, 1000, 10**6])
@pytest.mark.parametrize("size", [(9, 5), (1, 1), (8, 8)])
@pytest.mark.parametrize("overrides", [{}, {"convolution": "dense"}, {"shortcut": True}])
def test_pieces_make_the_image_that_the_decoder_makes(
    pixels: int, size: tuple[int, int], overrides: dict[str, object]
) -> None:
    net = small_decoder(**overrides).double()
    raw_BCHW = torch.randn(2, 4, *size, dtype=torch.double)
    with torch.no_grad():
        expected_BCHW = net(raw_BCHW)
    actual_BCHW = decode_in_pieces(net, raw_BCHW, pixels)
    assert expected_BCHW.std() > 0.1
    torch.testing.assert_close(actual_BCHW, expected_BCHW, rtol=1e-10, atol=1e-10)


def test_in_single_precision_they_are_as_near_to_the_exact_image() -> None:
    net, raw_BCHW = small_decoder(), torch.randn(2, 4, 16, 16)
    with torch.no_grad():
        whole_BCHW = net(raw_BCHW)
    pieces_BCHW = decode_in_pieces(net, raw_BCHW, 200)
    exact_BCHW = decode_in_pieces(net.double(), raw_BCHW.double(), 10**6)
    rounding = (whole_BCHW - exact_BCHW).abs().max()
    assert 0 < rounding < 1e-4
    assert (pieces_BCHW - exact_BCHW).abs().max() < 3 * rounding


def test_in_half_precision_they_are_as_near_to_the_exact_image() -> None:
    net, raw_BCHW = small_decoder(), torch.randn(2, 4, 16, 16)
    with torch.no_grad():
        exact_BCHW = net(raw_BCHW)
        whole_BCHW = net.bfloat16()(raw_BCHW.bfloat16())
    pieces_BCHW = decode_in_pieces(net, raw_BCHW.bfloat16(), 200)
    assert pieces_BCHW.dtype == torch.bfloat16
    assert 0 < (pieces_BCHW - exact_BCHW).norm() < 1.5 * (whole_BCHW - exact_BCHW).norm()


def test_maps_are_bounded_by_the_pieces_and_none_is_doubled_before_its_convolution() -> None:
    net, sizes = small_decoder(), set[tuple[int, ...]]()

    def look(_module: object, _inputs: object, output: Tensor) -> None:
        sizes.add(tuple(output.shape[2:]))

    for module in net.stages.modules():
        if isinstance(module, DecoderBlock | Upsample | nn.Conv2d):
            module.register_forward_hook(look)
    raw_BCHW = torch.randn(1, 4, 16, 16)
    decode_in_pieces(net, raw_BCHW, pixels=8 * 8)
    # 8 pixels, and 2 * 2 at either end: a block sees 2, the upsampling 1, of pixels that come in pairs.
    assert max(sizes) == (16, 16)
    net(raw_BCHW)
    assert max(sizes) == (64, 64)


@pytest.mark.parametrize("convolution", ["dense", "separable"])
def test_doubling_before_a_convolution_is_one_transposed_convolution(convolution: Convolution) -> None:
    layer = Upsample(3, convolution).double()
    randomise(layer)
    x_BCHW = torch.randn(2, 3, 4, 5, dtype=torch.double)
    torch.testing.assert_close(doubled(layer, x_BCHW), layer(x_BCHW))


def test_drawing_on_a_cpu_is_in_pieces_unless_gradients_norms_or_precision_ask_for_the_whole() -> None:
    net, raw_BCHW = small_decoder(), torch.randn(1, 4, 3, 3)
    called: list[nn.Module] = []
    for each in (net, normalised := small_decoder(stages=[Stage(32, 1), Stage(32, 1, norm=True)])):
        each.register_forward_hook(lambda module, _inputs, _output: called.append(module))
    with torch.no_grad():
        decode_for_drawing(net, raw_BCHW)
        assert called == []
        decode_for_drawing(normalised, raw_BCHW)
        with torch.autocast("cpu"):
            decode_for_drawing(net, raw_BCHW)
    assert decode_for_drawing(net, raw_BCHW).requires_grad
    with torch.no_grad():
        decode_for_drawing(net.bfloat16(), raw_BCHW.bfloat16())
    assert called == [normalised, net, net, net]


def test_an_exported_graph_is_that_of_the_decoder() -> None:
    class Drawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_decoder()

        def forward(self, raw_BCHW: Tensor) -> Tensor:
            return decode_for_drawing(self.net, raw_BCHW)

    def operators(module: nn.Module) -> list[str]:
        graph = torch.export.export(module, (torch.randn(1, 4, 4, 4),)).graph
        return [str(node.target) for node in graph.nodes if node.op == "call_function"]

    with torch.no_grad():
        assert operators(Drawing().eval()) == operators(small_decoder().eval())


def test_without_gradients_no_graph_is_held() -> None:
    assert not decode_in_pieces(small_decoder(), torch.randn(1, 4, 4, 4), 16).requires_grad


def test_normalised_stages_and_empty_pieces_are_refused() -> None:
    raw_BCHW = torch.randn(1, 4, 4, 4)
    with pytest.raises(ValueError, match="needs whole maps"):
        decode_in_pieces(small_decoder(stages=[Stage(32, 1), Stage(32, 1, norm=True)]), raw_BCHW)
    with pytest.raises(ValueError, match="pixels is 0"):
        decode_in_pieces(small_decoder(), raw_BCHW, pixels=0)
