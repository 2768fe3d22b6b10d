import pytest
import torch

from snapgen_pl.models.decoder import Stage
from snapgen_pl.models.strips import decode_in_strips
from tests.models.test_decoder import small_decoder


@pytest.mark.parametrize("pixels", [1, 100, 1000, 10**6])
@pytest.mark.parametrize("size", [(9, 5), (1, 1), (16, 16)])
def test_strips_make_the_image_that_the_decoder_makes(pixels: int, size: tuple[int, int]) -> None:
    net = small_decoder()
    raw_BCHW = torch.randn(2, 4, *size)
    with torch.no_grad():
        expected_BCHW = net(raw_BCHW)
    actual_BCHW = decode_in_strips(net, raw_BCHW, pixels)
    assert expected_BCHW.std() > 0.1
    torch.testing.assert_close(actual_BCHW, expected_BCHW, rtol=1e-5, atol=1e-5)


def test_strips_bound_the_maps_within_a_stage() -> None:
    net, largest = small_decoder(), 0

    def look(_module: object, _inputs: object, output: torch.Tensor) -> None:
        nonlocal largest
        largest = max(largest, output.shape[-2])

    net.stages[2].register_forward_hook(look)
    decode_in_strips(net, torch.randn(1, 4, 32, 4), pixels=16 * 8)
    # 8 rows, and 2 * 2 above and below: a block sees 2, the upsampling 1, of rows that come in pairs.
    assert largest == 16


def test_without_gradients_no_graph_is_held() -> None:
    assert not decode_in_strips(small_decoder(), torch.randn(1, 4, 4, 4), 16).requires_grad


def test_normalised_stages_and_empty_strips_are_refused() -> None:
    raw_BCHW = torch.randn(1, 4, 4, 4)
    with pytest.raises(ValueError, match="needs whole maps"):
        decode_in_strips(small_decoder(stages=[Stage(32, 1), Stage(32, 1, norm=True)]), raw_BCHW)
    with pytest.raises(ValueError, match="pixels is 0"):
        decode_in_strips(small_decoder(), raw_BCHW, pixels=0)
