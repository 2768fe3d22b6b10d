"""A teacher of Stable Diffusion 3.5 Large's shapes, with random weights, that tells how long it takes."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.clock import Clock
from snapgen_pl.conditioning.class_tokens import ClassTokens
from snapgen_pl.conditioning.condition import Condition
from snapgen_pl.flow.guidance import Guidance
from snapgen_pl.metrics.sample_metric import Facts
from snapgen_pl.models.denoiser import Conditioning, DenoiserOutput
from snapgen_pl.models.mmdit import MMDiT
from snapgen_pl.teachers.teacher import Observed, Question, Teacher

TOKENS = 77 + 256  # CLIP's two side by side, and T5's


class RandomTeacher(Teacher):
    """A transformer that was never trained, asked with states of texts that are stored.

    Args:
        network: in the precision that it computes in.
        guidance: as in Teacher.
        clock: is told what passes in the teacher, and in the gradients that go through it.
    """

    def __init__(self, network: MMDiT, guidance: Guidance, clock: Clock) -> None:
        weight = next(network.parameters())
        with weight.device:
            super().__init__(network, _PooledTokens(1, TOKENS, network.context_dim, network.pooled_dim), guidance)
        self._precision_of_weights, self._clock = weight.dtype, clock
        self._has_weights = True

    def ask(self, condition: Condition, nothing_B: Tensor) -> Question:
        """See Teacher."""
        self._clock.mark("student")
        question = super().ask(condition, nothing_B)
        self._clock.mark("teacher")
        return question

    def __call__(
        self, x_BCHW: Tensor, t_B: Tensor, question: Question, features: tuple[str, ...] = ()
    ) -> DenoiserOutput:
        """See Teacher."""
        self._clock.mark("student")
        output = super().__call__(x_BCHW, t_B, question, features)
        self._clock.mark("teacher")
        return output

    def observe(
        self, latents: Sequence[Tensor], t_B: Tensor, question: Question, features: tuple[str, ...]
    ) -> list[Observed]:
        """See Teacher."""
        self._clock.mark("student")
        observed = super().observe(latents, t_B, question, features)
        self._clock.mark("teacher")
        for latent_BCHW in latents:
            if latent_BCHW.requires_grad:  # its gradient comes when those through the teacher are done
                latent_BCHW.register_hook(lambda _: self._clock.mark("teacher"))  # type: ignore[no-untyped-call]
        return observed

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
        return self._precision_of_weights


class _PooledTokens(ClassTokens):
    """Class tokens, the first of which is cut to a pooled vector."""

    def __init__(self, num_classes: int, tokens: int, context_dim: int, pooled_dim: int | None) -> None:
        super().__init__(num_classes, tokens, context_dim)
        self.pooled_dim = pooled_dim

    def forward(self, condition: Condition) -> Conditioning:
        tokens_BSD = super().forward(condition).tokens_BSD
        return Conditioning(tokens_BSD, pooled_BP=tokens_BSD[:, 0, : self.pooled_dim])
