"""Turns of step distillation at full size on a GPU: ``python -m benchmarks.step_distill --json FILE``.

SnapGen's UNet at 1024 px (128x128x16 latents) before a teacher of SD3.5-Large's size, both with random weights; a
student's weights in fp32 under bf16 autocast, the teacher's in bf16. No text encoders and no autoencoder: their states
and latents are stored.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from json import dumps
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import auto_cli
from torch import nn

from benchmarks.cuda import median_step_s
from benchmarks.timing import Environment, environment
from snapgen_pl.autoencoders.autoencoder import Posterior
from snapgen_pl.autoencoders.patch_pca import PatchPCA
from snapgen_pl.conditioning.class_tokens import ClassTokens
from snapgen_pl.conditioning.condition import Condition
from snapgen_pl.data.source import LatentBatch
from snapgen_pl.flow.guidance import Guidance
from snapgen_pl.flow.path import sample_path
from snapgen_pl.metrics.sample_metric import Facts
from snapgen_pl.models.denoiser import Conditioning
from snapgen_pl.models.discriminator import Discriminator, HeadInput
from snapgen_pl.models.mmdit import MMDiT
from snapgen_pl.models.unet import Block, Stage, UNet
from snapgen_pl.modules.step_distill import StepDistill
from snapgen_pl.modules.turns import Turn
from snapgen_pl.teachers.teacher import Teacher

TURNS: tuple[Turn, ...] = ("discriminator", "generator")
# Tokens: CLIP-L and CLIP-G side by side, Gemma and a learned one; of the teacher CLIP's and T5's.
STUDENT_TOKENS, TEACHER_TOKENS = 77 + 78, 77 + 256


@dataclass(frozen=True)
class Size:
    """What is built.

    Attributes:
        image_size: in pixels; latents are an eighth.
        student: arguments of the UNet.
        teacher: arguments of the MMDiT.
        heads: blocks of the teacher that the discriminator reads.
    """

    image_size: int
    student: Mapping[str, Any]
    teacher: Mapping[str, Any]
    heads: tuple[int, ...]


_SMALL_STAGES = [Stage(32, [Block()], [Block()] * 2), Stage(64, [Block(layers=1)], [Block(layers=1)] * 2)]
SIZES = {
    "full": Size(1024, {"in_channels": 16, "context_dim": 2304}, {}, (7, 15, 23, 31)),
    "small": Size(
        128,
        {"stages": _SMALL_STAGES, "head_dim": 32, "middle_layers": 1, "in_channels": 16, "context_dim": 64},
        {"layers": 2, "heads": 2, "head_dim": 16, "context_dim": 32, "pooled_dim": 32, "latent_size": 16},
        (0, 1),
    ),
}


@dataclass(frozen=True)
class TurnRecord:
    """What a network's step takes."""

    batch: int
    seconds: float
    images_per_s: float
    peak_memory_gib: float


class RandomTeacher(Teacher):
    """A transformer of random weights, in bf16."""

    def __init__(self, arguments: Mapping[str, Any], device: torch.device) -> None:
        with torch.device(device):
            network = MMDiT(**arguments).to(torch.bfloat16)
            conditioner = _PooledTokens(1, TEACHER_TOKENS, network.context_dim)
        super().__init__(network, conditioner, Guidance())
        self._has_weights = True

    def latents(self) -> dict[str, str | int | float]:
        """Any."""
        return {}

    def _read(self, folder: Path, classes: tuple[str, ...]) -> list[str]:
        return []

    def identity(self) -> Facts:
        """Nothing that matters."""
        return {}

    @property
    def _dtype(self) -> torch.dtype:
        return torch.bfloat16


class _PooledTokens(ClassTokens):
    """Class tokens, the first of which is cut to a pooled vector of SD3's width."""

    def forward(self, condition: Condition) -> Conditioning:
        tokens_BSD = super().forward(condition).tokens_BSD
        return Conditioning(tokens_BSD, pooled_BP=tokens_BSD[:, 0, : min(2048, self.context_dim)])


def main(
    json: Path | None = None,
    size: Literal["full", "small"] = "full",
    batch: int = 1,
    rounds: int = 3,
) -> None:
    """Times a step of each network, and its peak memory.

    Args:
        json: file for the record; none is written if not given.
        size: full, or small to see that it runs.
        batch: images a step.
        rounds: timed steps of each.
    """
    where = environment("benchmarks.step_distill", accelerator=True)
    module, device = build(SIZES[size]), torch.device("cuda")
    records = {turn: measure(module, turn, batch, rounds, device) for turn in TURNS}
    for turn, record in records.items():
        print(f"{turn:<14} {record.images_per_s:.2f} images/s, peak {record.peak_memory_gib:.1f} GiB")
    if json is not None:
        json.write_text(dumps(_content(size, module, where, records), indent=2) + "\n", encoding="utf-8")


def build(size: Size, device: torch.device = torch.device("cuda")) -> StepDistill:  # noqa: B008 (immutable)
    """The stage's module, on the device."""
    teacher = RandomTeacher(size.teacher, device)
    width = next(iter(teacher.feature_channels.values()))
    with torch.device(device):
        student = UNet(**size.student)
        conditioner = ClassTokens(1, STUDENT_TOKENS, student.context_dim)
        heads = Discriminator([HeadInput(f"block.{block}", width) for block in size.heads], teacher.summary_dim)
    module = StepDistill(
        student, conditioner, PatchPCA(patch=8, channels=16), teacher, heads, image_size=size.image_size
    )
    return module.to(device).train()


def measure(module: StepDistill, turn: Turn, batch: int, rounds: int, device: torch.device) -> TurnRecord:
    """Steps of one network, the other one frozen."""
    networks: dict[Turn, list[nn.Module]] = {
        "generator": module.trained(),
        "discriminator": [module.discriminator],
    }
    for name, parts in networks.items():
        for part in parts:
            part.requires_grad_(name == turn)
    weights = [weight for part in networks[turn] for weight in part.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=1e-6, fused=True)
    step = _step(module, turn, batch, device)

    def whole_step() -> None:
        step().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    torch.cuda.reset_peak_memory_stats()
    seconds = median_step_s(whole_step, rounds)
    return TurnRecord(batch, seconds, batch / seconds, torch.cuda.max_memory_allocated() / 2**30)


def _step(module: StepDistill, turn: Turn, batch: int, device: torch.device) -> Callable[[], torch.Tensor]:
    latent = batch, *module.latent_shape
    position_B = torch.arange(batch, device=device)
    t_B = module.timesteps.sample((position_B + 0.5) / batch)
    path = sample_path(torch.randn(latent, device=device), torch.randn(latent, device=device), t_B)
    asked_B = torch.zeros(batch, dtype=torch.int64, device=device)
    stored = LatentBatch(Posterior(torch.zeros(latent, device=device)), asked_B, position_B)
    terms_of = module.loss_terms if turn == "generator" else module.discriminator_terms

    def loss() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return module.combine(terms_of(stored, path, asked_B)).loss

    return loss


def _content(
    size: str, module: StepDistill, where: Environment, records: Mapping[Turn, TurnRecord]
) -> dict[str, object]:
    parameters = {
        "student": sum(weight.numel() for weight in module.denoiser.parameters()),
        "teacher": sum(weight.numel() for weight in module.teacher._denoiser.parameters()),
        "discriminator": sum(weight.numel() for weight in module.discriminator.parameters()),
    }
    return {
        "protocol": "random weights; a turn is forward, loss, backward and fused AdamW of one network; student and "
        "heads in fp32 under bf16 autocast, teacher in bf16, eager; median by device events; latents and states are "
        "stored",
        "environment": asdict(where),
        "size": size,
        "parameters": parameters,
        "turns": {turn: asdict(record) for turn, record in records.items()},
    }


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
