"""What conditioners on texts share."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from snapgen_pl.conditioning.condition import Texts, TextStates
from snapgen_pl.conditioning.conditioner import Conditioner


class Encoder(Protocol):
    """What is asked of a text encoder here: :class:`~snapgen_pl.conditioning.text_encoder.TextEncoder` says what of it
    means what; exported ones do it too.
    """

    tokens: int
    context_dim: int
    pooled_dim: int | None
    identity: str

    @property
    def masked(self) -> bool: ...  # noqa: D102  (documented above)

    def to(self, device: torch.device) -> Self: ...  # noqa: D102

    def encode(self, texts: Sequence[str]) -> TextStates: ...  # noqa: D102

    def encode_once(self, texts: Sequence[str]) -> TextStates: ...  # noqa: D102


class TextConditioner(Conditioner):
    """Maps texts, through frozen encoders that are no part of its module tree.

    The states of texts come with them, or else are made here, on the device that the conditioner is on.

    Args:
        encoders: by the names that their states go by.
        tokens: context tokens a text.
        context_dim: width of a token; the denoiser's context_dim.

    Raises:
        ValueError: for sizes below 1.
    """

    takes: ClassVar[Literal["label", "caption"]] = "caption"
    place: Tensor

    def __init__(self, encoders: Mapping[str, Encoder], tokens: int, context_dim: int) -> None:
        super().__init__(tokens, context_dim)
        self._encoders: dict[str, Encoder] = dict(encoders)
        # Tells where the conditioner is, sharded or without parameters as it may be.
        self.register_buffer("place", torch.empty(0), persistent=False)

    def encoders(self) -> dict[str, str]:
        """See Conditioner.encoders."""
        return {name: encoder.identity for name, encoder in self._encoders.items()}

    @property
    def text_encoders(self) -> Mapping[str, Encoder]:
        """Those given, by name."""
        return self._encoders

    def states(self, asked: Texts) -> dict[str, TextStates]:
        """What each encoder makes of the texts, in fp32: as it came with them, or made now.

        Raises:
            ValueError: where what came is not what the encoder would give.
        """
        return {name: self._states(name, encoder, asked) for name, encoder in self._encoders.items()}

    def _states(self, name: str, encoder: Encoder, asked: Texts) -> TextStates:
        device = self.place.device
        if (brought := asked.states.get(name)) is None:
            return encoder.to(device).encode(asked.captions)
        _check(name, encoder, brought, len(asked.captions))
        return TextStates(
            brought.tokens_BSD.to(device, torch.float32),
            None if brought.mask_BS is None else brought.mask_BS.to(device),
            None if brought.pooled_BP is None else brought.pooled_BP.to(device, torch.float32),
        )


def joined(blocks: Sequence[Sequence[Tensor]], context_dim: int) -> Tensor:
    """Token states of a block side by side, zero-padded to the width; blocks one after another.

    Args:
        blocks: tensors (B, S, D), S the same in a block.
        context_dim: at least as wide as any block.

    Returns:
        (B, sum of S, context_dim).
    """
    wide = [torch.cat(list(block), dim=-1) for block in blocks]
    return torch.cat([F.pad(block, (0, context_dim - block.shape[-1])) for block in wide], dim=1)


def check_block(encoders: Mapping[str, Encoder], context_dim: int) -> None:
    """Raises ValueError unless the states of encoders can stand side by side within the width."""
    if len({encoder.tokens for encoder in encoders.values()}) > 1:
        counts = ", ".join(f"{name} {encoder.tokens}" for name, encoder in encoders.items())
        raise ValueError(f"encoders of one block have different numbers of tokens ({counts}); give each its own block")
    if (width := sum(encoder.context_dim for encoder in encoders.values())) > context_dim:
        raise ValueError(
            f"{' and '.join(encoders)} are {width} wide, context_dim is {context_dim}; set it, and the denoiser's, to "
            f"{width} or more"
        )


def _check(name: str, encoder: Encoder, states: TextStates, count: int) -> None:
    expected, found = (count, encoder.tokens, encoder.context_dim), tuple(states.tokens_BSD.shape)
    if found != expected:
        raise ValueError(f"the texts' states of {name} are {found}, its encoder's {expected}; store them again with it")
    if (states.mask_BS is not None) != encoder.masked:
        come = "without the mask" if encoder.masked else "with a mask, unlike those"
        raise ValueError(f"the texts' states of {name} come {come} that its encoder gives; store them again with it")
    if encoder.pooled_dim is not None and states.pooled_BP is None:
        raise ValueError(
            f"the texts' states of {name} come without a pooled vector; store them again, with the encoder's pooled set"
        )
