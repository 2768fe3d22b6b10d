"""A small Stable Diffusion 3 pipeline on disk, and what its teacher is asked. Also a script: see `main`."""

import argparse
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, distributed, nn

from snapgen_pl.conditioning.class_tokens import ClassTokens
from snapgen_pl.conditioning.condition import Condition
from snapgen_pl.flow.guidance import Guidance
from snapgen_pl.models.denoiser import Conditioning, DenoiserOutput
from snapgen_pl.models.mmdit import MMDiT
from snapgen_pl.teachers.sd3 import SD3Teacher
from snapgen_pl.teachers.teacher import Teacher
from tests.tiny_kl import kl

CLASSES = ("cat", "dog", "owl")
SIZES: dict[str, Any] = {
    "in_channels": 4,
    "layers": 3,
    "heads": 2,
    "head_dim": 8,
    "context_dim": 12,
    "pooled_dim": 12,
    "latent_size": 8,
    "largest_grid": 6,
}
NAMES = ("block.2", "block.0")


class PooledTokens(ClassTokens):
    """Class tokens with their mean as the pooled vector."""

    def forward(self, condition: Condition) -> Conditioning:
        tokens_BSD = super().forward(condition).tokens_BSD
        return Conditioning(tokens_BSD, pooled_BP=tokens_BSD.mean(1))


def conditioner() -> PooledTokens:
    torch.manual_seed(2)
    return PooledTokens(len(CLASSES), tokens=5, context_dim=12)


def mmdit(seed: int = 0, **options: Any) -> MMDiT:
    torch.manual_seed(seed)
    network = MMDiT(**(SIZES | options))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.eval()


def pipeline(folder: Path, seed: int = 0, **options: Any) -> Path:
    """Saves transformer and autoencoder as diffusers does."""
    mmdit(seed).network.save_pretrained(folder / "transformer", **options)
    kl(scaling_factor=1.5305, shift_factor=0.0609).save_pretrained(folder / "vae")
    return folder


def teacher(folder: Path, scale: float = 4.5, ready: bool = True, **options: Any) -> SD3Teacher:
    guidance = options.pop("guidance", Guidance(scale))
    made = SD3Teacher(conditioner(), str(folder), guidance=guidance, **({"dtype": "float32"} | options))
    if ready:
        made.ready(folder / "run", CLASSES)
    return made


def answer(
    made: Teacher, x_BCHW: Tensor, t_B: Tensor, condition: Condition, nothing_B: Tensor, features: tuple[str, ...] = ()
) -> DenoiserOutput:
    return made(x_BCHW, t_B, made.ask(condition, nothing_B), features)


def observation(made: Teacher, x_BCHW: Tensor, t_B: Tensor, *asked: Tensor) -> tuple[Tensor, Tensor]:
    """A feature before the last one, and the gradient through it."""
    x_BCHW = x_BCHW.clone().requires_grad_()
    (seen,) = made.observe([x_BCHW], t_B, made.ask(*asked), ("block.1",))
    (gradient,) = torch.autograd.grad(seen.features[0].square().sum(), x_BCHW)
    return seen.features[0].detach(), gradient


def asked(size: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, t, labels, and that nothing is asked of the last sample."""
    torch.manual_seed(1)
    nothing_B = torch.tensor([False] * (size - 1) + [True])
    return torch.randn(size, 4, 6, 10), torch.linspace(0.1, 0.9, size), torch.arange(size) % 3, nothing_B


def main() -> None:
    """Answers as one of several processes that the weights are sharded over."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("placement")
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    distributed.init_process_group("gloo")
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    made = teacher(arguments.folder, placement=arguments.placement, compile=arguments.compile)
    for _ in range(2):
        made.place(torch.device("cpu"))
    shares = [parameter.to_local().numel() / parameter.numel() for parameter in made._denoiser.parameters()]  # type: ignore[attr-defined]
    answers = []
    for mode in (torch.inference_mode, torch.enable_grad):  # as in validation, and in training after it
        with mode():
            own = move_data_to_device(tuple(part[rank::ranks] for part in asked()), torch.device("cpu"))
            answers.append(answer(made, *own, NAMES))
    seen, gradient = observation(made, *own)
    torch.save(
        {
            "seen": seen,
            "gradient": gradient,
            "velocity": answers[1].velocity_BCHW,
            "features": list(answers[1].features),
            "same": torch.equal(answers[0].velocity_BCHW, answers[1].velocity_BCHW),
            "share": sum(shares) / len(shares),
            "identity": made.identity()["weights"],
        },
        arguments.out / f"{rank}.pt",
    )
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
