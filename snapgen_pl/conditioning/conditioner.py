"""The contract of conditioners: what an image is asked for with -> what a denoiser is told."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from torch import Tensor, nn

from snapgen_pl.conditioning.condition import Condition
from snapgen_pl.models.denoiser import Conditioning


class Conditioner(nn.Module, ABC):
    """Maps labels, or texts, to context tokens.

    Args:
        tokens: context tokens a sample.
        context_dim: width of a token; the denoiser's context_dim.

    Attributes:
        takes: which conditions it maps.

    Raises:
        ValueError: for sizes below 1.
    """

    takes: ClassVar[Literal["label", "caption"]]

    def __init__(self, tokens: int, context_dim: int) -> None:
        super().__init__()
        if min(tokens, context_dim) < 1:
            raise ValueError(f"tokens {tokens}, context_dim {context_dim}: both must be >= 1")
        self.tokens, self.context_dim = tokens, context_dim

    def ready(self, folder: Path, classes: tuple[str, ...]) -> str | None:
        """Makes the conditioner usable for a run: by default, it already is.

        Args:
            folder: the run's folder, for what has to be kept with the run.
            classes: the data's class names; labels index them.

        Returns:
            A line for the user where something was computed or loaded.

        Raises:
            ValueError: where it cannot serve these classes.
        """
        return None

    def encoders(self) -> Mapping[str, str]:
        """The identities of the text encoders whose states it takes, by the names that states go by."""
        return {}

    @abstractmethod
    def forward(self, condition: Condition) -> Conditioning:
        """Conditions -> (B, tokens, context_dim)."""

    @abstractmethod
    def dropping(self) -> Mapping[str, float | int]:
        """What :meth:`drop` depends on besides seed and positions."""

    @abstractmethod
    def drop(self, condition: Condition, seed: int, position_B: Tensor) -> Condition:
        """Takes what is asked for, or parts of it, away from some samples, by (seed, position) alone."""

    def keep(self, condition: Condition, encoders: Sequence[str]) -> Condition:
        """The condition through some of the text encoders alone.

        Raises:
            ValueError: where there are none to choose from.
        """
        raise ValueError(f"{type(self).__name__} has no text encoders to choose from; leave --encoders out")

    @abstractmethod
    def nothing(self, like: Condition) -> Condition:
        """Nothing asked for, for as many samples as ``like``."""

    @abstractmethod
    def asks_nothing(self, condition: Condition) -> Tensor:
        """bool (B,), True where nothing is asked for."""

    def unconditional(self, like: Condition) -> Conditioning:
        """What a denoiser is told where nothing is asked for, for as many samples as ``like``."""
        # Called as a module, for shards are gathered then.
        conditioning: Conditioning = self(self.nothing(like))
        return conditioning
