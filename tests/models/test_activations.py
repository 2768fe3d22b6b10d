"""What is counted on the meta device is what torch keeps when it computes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_pl.models.activations import saved, saved_by_unit, working_bytes
from snapgen_pl.models.denoiser import Conditioning
from snapgen_pl.models.unet import Block, Stage, UNet


def unet(**options: bool) -> UNet:
    """Without the norm of queries and keys: a GPU has it fused, a CPU has not."""
    stages = [
        Stage(32, [Block()], [Block()] * 2),
        Stage(64, [Block(layers=1)], [Block(layers=1)] * 2, self_attention=True),
    ]
    return UNet(stages, middle_layers=1, context_dim=16, head_dim=32, qk_norm=False, **options)


def pass_of(network: UNet, images: int) -> Callable[[], object]:
    with torch.device(next(network.parameters()).device):
        x_BCHW, t_B = torch.ones(images, 4, 8, 8), torch.ones(images)
        told = Conditioning(torch.ones(images, 5, 16))
    return lambda: network(x_BCHW, t_B, told)


def kept_on_cpu(forward: Callable[[], object], network: nn.Module) -> int:
    weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for place, storage in kept.items() if place not in weights)


@pytest.mark.parametrize("options", [{}, {"rope": False}, {"activation_checkpointing": True}])
def test_saved_activations_are_those_of_the_network_at_work(options: dict[str, bool]) -> None:
    network, on_meta = unet(**options), unet(**options).to("meta")
    for images in (1, 3):
        counted = saved(pass_of(on_meta, images), on_meta.parameters())
        assert counted == (kept_on_cpu(pass_of(network, images), network), 0)


def test_autocast_lowers_products_once_a_weight_and_raises_norms() -> None:
    """A norm keeps fp32 inputs and two numbers a row, a product bf16 ones; both products share their weight's copy."""
    norm, layer = nn.LayerNorm(8, device="meta"), nn.Linear(8, 8, bias=False, device="meta")
    x_BD = torch.empty(5, 8, device="meta")
    weights = [*norm.parameters(), *layer.parameters()]
    kept = saved(lambda: norm(layer(layer(x_BD))), weights, autocast=True)
    products, norms = 2 * 2 * 5 * 8, 4 * 5 * (8 + 2)
    assert kept == (products + norms, 2 * 8 * 8)
    assert saved(lambda: norm(layer(layer(x_BD))), weights) == (4 * 5 * 8 * 3 + 4 * 5 * 2, 0)


def test_a_fused_rms_norm_keeps_its_input_and_a_number_a_row() -> None:
    norm, x_BD = nn.RMSNorm(8, device="meta"), torch.empty(5, 8, device="meta", requires_grad=True)
    assert saved(lambda: norm(x_BD), norm.parameters()).activations == 4 * 5 * (8 + 1)


@pytest.mark.parametrize("masked", [False, True])
def test_fused_attention_keeps_no_matrix_of_scores(masked: bool) -> None:
    q, k, v = (torch.empty(2, heads, 6, 8, device="meta", requires_grad=True) for heads in (4, 1, 1))
    mask = torch.ones(2, 1, 1, 6, dtype=torch.bool, device="meta") if masked else None
    kept = saved(lambda: F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True), ())
    inputs, output, logarithms = 2 * 6 * 8 * (4 + 1 + 1), 2 * 4 * 6 * 8, 2 * 4 * 6
    assert kept.activations == 4 * (inputs + output + logarithms + (2 * 6 if masked else 0))


def test_units_keep_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    network = unet().to("meta")
    shares = saved_by_unit(pass_of(network, 1), network)
    assert len(shares) == len(list(network.units()))
    assert 0 < max(shares) < sum(shares) < saved(pass_of(network, 1), network.parameters()).activations
    assert not any(unit._forward_hooks or unit._forward_pre_hooks for unit in network.units())


def test_working_memory_is_the_most_that_lives_at_once() -> None:
    layers = nn.Sequential(
        *(nn.Linear(width, wide, bias=False, device="meta") for width, wide in ((2, 8), (8, 4), (4, 1)))
    )
    x_BD = torch.empty(5, 2, device="meta")
    # The second product, beside its input; the first's input is the caller's.
    assert working_bytes(lambda: layers(x_BD), [*layers.parameters(), x_BD]) == 4 * 5 * (8 + 4)
