"""What a network costs: its parameters, and the multiply-accumulates of one forward pass.

The published "FLOPs" of SnapGen and its peers are multiply-accumulates (MACs). Two conventions are in use:

- ``denoiser``: convolutions, linear layers and attention's matrix products; norms and activations count nothing.
- ``decoder``: convolutions, linear layers, 5 per normalised element and 1 per nearest-upsampled element; attention's
  matrix products are left out. It gives the 4970 G printed for the decoders of SDXL and SD3 at 1024 px.

Counting runs on the meta device: no memory, no arithmetic, and no fused kernel (the CPU's fused attention is unknown
to torch's counter and would count as nothing), so attention is seen as the two matrix products it is.
"""

from contextlib import AbstractContextManager
from math import prod
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd
from torch.utils.flop_counter import FlopCounterMode

from snapgen_pl.models.denoiser import Conditioning, Denoiser

TRAINING_FLOPS_A_MAC = 6  # a multiply and an addition; forward once, backward twice the forward's work

Convention = Literal["denoiser", "decoder"]


class Cost(NamedTuple):
    """The cost of a network at one input size.

    Attributes:
        params: number of parameters, shared ones once.
        macs: multiply-accumulates of one forward pass.
    """

    params: int
    macs: int

    @property
    def params_m(self) -> float:
        """Millions of parameters."""
        return self.params / 1e6

    @property
    def gmacs(self) -> float:
        """Billions of multiply-accumulates, printed as "GFLOPs" in the tables of the papers."""
        return self.macs / 1e9


def count(denoiser: Denoiser, size: int, tokens: int, observed: tuple[str, ...] = ()) -> Cost:
    """Counts a denoiser at batch 1, the part that depends on the conditioning alone included.

    Args:
        denoiser: the network, on any device; it is left as it is.
        size: height and width of the latent.
        tokens: number of context tokens.
        observed: features; where there are any, these are counted in place of a prediction.
    """
    counted = _Observing(denoiser, observed) if observed else denoiser
    return _count(counted, denoiser_inputs(denoiser, size, tokens), "denoiser")


class _Observing(nn.Module):
    """Features of a denoiser alone, as a module's call."""

    def __init__(self, denoiser: Denoiser, features: tuple[str, ...]) -> None:
        super().__init__()
        self.denoiser, self.features = denoiser, features

    def forward(self, x_BCHW: Tensor, t_B: Tensor, conditioning: Conditioning) -> tuple[Tensor, ...]:
        return self.denoiser.observe(x_BCHW, t_B, conditioning, self.features)


def denoiser_inputs(denoiser: Denoiser, size: int, tokens: int) -> tuple[Tensor, Tensor, Conditioning]:
    """What a denoiser is counted on: latent, time and raw conditioning of a sample, on the meta device.

    Args:
        denoiser: the network.
        size: height and width of the latent.
        tokens: number of context tokens.
    """
    conditioning = Conditioning(
        tokens_BSD=torch.empty(1, tokens, denoiser.context_dim, device="meta"),
        pooled_BP=None if denoiser.pooled_dim is None else torch.empty(1, denoiser.pooled_dim, device="meta"),
    )
    latent_BCHW = torch.empty(1, denoiser.in_channels, size, size, device="meta")
    return latent_BCHW, torch.empty(1, device="meta"), conditioning


def count_module(module: nn.Module, *inputs: Tensor, convention: Convention = "denoiser") -> Cost:
    """Counts any module for one call on inputs of these shapes.

    Args:
        module: the module, on any device; it is left as it is.
        inputs: positional inputs; only their shapes and dtypes matter.
        convention: what counts (see the head of this file).
    """
    return _count(module, tuple(value.to("meta") for value in inputs), convention)


def forward_on_meta(
    module: nn.Module, inputs: tuple[Tensor | Conditioning, ...], counter: AbstractContextManager[object]
) -> object:
    """Calls a module without memory or arithmetic, under a mode that sees its operations; returns what it returns.

    Args:
        module: on any device; it is left as it is, and one compiled in place is called as it was written.
        inputs: its positional inputs, on the meta device.
        counter: entered for the call alone.
    """
    tensors = (*module.named_parameters(), *module.named_buffers())
    weights = {name: tensor.detach().to("meta") for name, tensor in tensors}
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), counter:
        return functional_call(module, weights, inputs)


def _count(module: nn.Module, inputs: tuple[Tensor | Conditioning, ...], convention: Convention) -> Cost:
    counter = FlopCounterMode(display=False, custom_mapping=_ELEMENTWISE if convention == "decoder" else None)
    forward_on_meta(module, inputs, counter)
    params = sum(parameter.numel() for parameter in module.parameters())
    flops = counter.get_total_flops() if convention == "denoiser" else _layer_flops(module, counter)
    return Cost(params, flops // 2)


def _normalised(shape: torch.Size, *_: object, **__: object) -> int:
    return 2 * 5 * prod(shape)


def _upsampled(*_: object, out_shape: torch.Size, **__: object) -> int:
    return 2 * prod(out_shape)


# The overload beside the operator keeps the counter from taking upsampling apart before it is seen.
_ELEMENTWISE = {
    torch.ops.aten.native_group_norm: _normalised,
    torch.ops.aten.native_layer_norm: _normalised,
    torch.ops.aten.upsample_nearest2d: _upsampled,
    torch.ops.aten.upsample_nearest2d.default: _upsampled,
}


def _layer_flops(module: nn.Module, counter: FlopCounterMode) -> int:
    """What the counter saw inside convolution and linear layers, and of elementwise work anywhere."""
    flops_by_module = counter.get_flop_counts()
    root = type(module).__name__
    paths = [path for path, layer in module.named_modules() if isinstance(layer, nn.Linear | _ConvNd)]
    layers = sum(sum(flops_by_module.get(f"{root}.{path}" if path else root, {}).values()) for path in paths)
    return layers + sum(flops_by_module.get("Global", {}).get(operator, 0) for operator in _ELEMENTWISE)
