"""The networks that benchmarks compare, built fast, and what they are fed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.dreamlite import DreamLite
from snapgen_pl.experiments import experiments_dir
from snapgen_pl.models.count import Cost, count
from snapgen_pl.models.denoiser import Conditioning, Denoiser
from snapgen_pl.tables.declared import declared_denoiser

CONTEXT_TOKENS = 77
_IMAGENET = experiments_dir() / "imagenet256"

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Subject:
    """A network under test.

    Attributes:
        build: makes it for latents of a size.
        tokens: context tokens it is fed.
    """

    build: Callable[[int], Denoiser]
    tokens: int = CONTEXT_TOKENS

    def cost(self, size: int) -> Cost:
        """Parameters, and multiply-accumulates of one image of this latent size."""
        with torch.device("meta"):
            return count(self.build(size), size, self.tokens)


def recorded(costs: Mapping[str, Cost]) -> dict[str, dict[str, int]]:
    """Costs by network, for JSON."""
    return {name: cost._asdict() for name, cost in costs.items()}


# Transformers read one learned token a class, the papers' label embedding.
SUBJECTS: Mapping[str, Subject] = MappingProxyType(
    {
        "snapgen": Subject(lambda size: declared_denoiser(_IMAGENET / "ablation" / "8_reference.yaml")),
        "dit_xl_2": Subject(lambda size: declared_denoiser(_IMAGENET / "peers" / "dit_xl.yaml"), tokens=1),
        "uvit_h": Subject(
            lambda size: declared_denoiser(_IMAGENET / "peers" / "uvit_h.yaml", latent_size=size), tokens=1
        ),
        "thin_sdxl": Subject(lambda size: declared_denoiser(_IMAGENET / "ablation" / "1_sdxl_thin.yaml")),
        "dreamlite": Subject(lambda size: DreamLite()),
    }
)


def materialise(build: Callable[[], M], device: torch.device) -> M:
    """Builds a network with small random weights, without paying for its initialisation.

    Weights repeat one block of 2^20 numbers: speed does not depend on their values as long as they are ordinary.
    """
    with torch.device("meta"):
        network = build()
    if unfilled := [name for name, _ in network.named_buffers()]:
        raise ValueError(f"buffers {unfilled} would be left without values; build this network as usual")
    network = network.to_empty(device=device)
    noise = torch.empty(2**20, device=device).uniform_(-0.02, 0.02, generator=torch.Generator(device).manual_seed(0))
    with torch.no_grad():
        for parameter in network.parameters():
            repeats = ceil(parameter.numel() / noise.numel())
            parameter.copy_(noise.repeat(repeats)[: parameter.numel()].view_as(parameter))
    return network


@dataclass(frozen=True)
class Feed:
    """Inputs of one pass, and the target of its loss."""

    x_BCHW: Tensor
    t_B: Tensor
    conditioning: Conditioning
    target_BCHW: Tensor


def feed(network: Denoiser, batch: int, size: int, tokens: int, device: torch.device) -> Feed:
    """Random inputs in channels_last."""
    generator = torch.Generator(device).manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    latent = batch, network.in_channels, size, size
    return Feed(
        x_BCHW=normal(*latent).to(memory_format=torch.channels_last),
        t_B=torch.rand(batch, generator=generator, device=device),
        conditioning=Conditioning(normal(batch, tokens, network.context_dim)),
        target_BCHW=normal(*latent).to(memory_format=torch.channels_last),
    )


def forward(network: Denoiser, fed: Feed) -> None:
    """One prediction without gradients, the conditioning's projections included."""
    with torch.no_grad():
        network(fed.x_BCHW, fed.t_B, fed.conditioning)


def forward_backward(network: Denoiser, fed: Feed) -> None:
    """One prediction, its mean squared error in fp32, and the gradients of all parameters added to what is there."""
    velocity = network(fed.x_BCHW, fed.t_B, fed.conditioning).velocity_BCHW
    F.mse_loss(velocity.float(), fed.target_BCHW).backward()  # type: ignore[no-untyped-call]
