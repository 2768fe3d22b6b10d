"""Classifier-free guidance (Ho and Salimans, 2022): from a denoiser and two conditionings to one velocity."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from snapgen_pl.flow.samplers import VelocityFn
from snapgen_pl.models.denoiser import Conditioning, Denoiser, DenoiserOutput, PreparedConditioning

Join: TypeAlias = Callable[[Tensor, Tensor], Tensor]
_ROUNDING = 1e-6  # of times, which schedulers hold in fp32: an interval's ends are in it all the same


@dataclass(frozen=True)
class Guidance:
    """How far, when and where the velocity is pushed away from the unconditional one.

    Args:
        scale: s of v = v_uncond + s (v_cond - v_uncond); 1 is no guidance, and costs none.
        interval: the times, ends included, at which guidance acts (Kynkäänniemi et al., 2024).
        channels: guide only the first so many channels; DiT and SiT guide 3 of 4. None guides all.
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    channels: int | None = None

    def __post_init__(self) -> None:
        low, high = self.interval
        if not (math.isfinite(self.scale) and self.scale >= 0):
            raise ValueError(f"guidance scale is {self.scale}; it must be finite and at least 0 (1 is no guidance)")
        if not 0 <= low <= high <= 1:
            raise ValueError(f"guidance interval is {self.interval}; it must be (low, high) with 0 <= low <= high <= 1")
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"guided channels are {self.channels}; at least 1 must be guided, or None for all")

    def acts_at(self, t: float) -> bool:
        """Whether t lies in the interval."""
        low, high = self.interval
        return low - _ROUNDING <= t <= high + _ROUNDING

    def combine(self, conditional_BCHW: Tensor, unconditional_BCHW: Tensor) -> Tensor:
        """v_uncond + s (v_cond - v_uncond) in the guided channels, v_cond in the others."""
        guided_BCHW = unconditional_BCHW + self.scale * (conditional_BCHW - unconditional_BCHW)
        if self.channels is None:
            return guided_BCHW
        return torch.cat((guided_BCHW[:, : self.channels], conditional_BCHW[:, self.channels :]), dim=1)

    def combine_at(self, t_B: Tensor, conditional_BCHW: Tensor, unconditional_BCHW: Tensor) -> Tensor:
        """What :meth:`combine` says of samples whose time lies in the interval, v_cond of the others."""
        low, high = self.interval
        acts_B = (t_B >= low - _ROUNDING) & (t_B <= high + _ROUNDING)
        return torch.where(
            acts_B[:, None, None, None], self.combine(conditional_BCHW, unconditional_BCHW), conditional_BCHW
        )

    def check_channels(self, available: int) -> None:
        """Raises ValueError where more channels are to be guided than there are."""
        if self.channels is not None and self.channels > available:
            raise ValueError(f"guided channels are {self.channels}, but the denoiser has {available}; use None for all")


def guided_velocity(
    denoiser: Denoiser, conditioning: Conditioning, unconditional: Conditioning, guidance: Guidance
) -> VelocityFn:
    """The velocity that a sampler integrates.

    Both conditionings are prepared here, once. Where guidance acts, the conditional and the unconditional velocity
    come of one forward of twice the batch; elsewhere the conditional one is all there is.

    Args:
        denoiser: the network, in the mode it is to run in.
        conditioning: of the B samples.
        unconditional: likewise, one row a sample, as many tokens.
        guidance: scale, interval, channels.

    Returns:
        (x_BCHW, t) -> velocity_BCHW, in x's type: a bf16 network's velocities are combined in fp32.

    Raises:
        ValueError: more channels are to be guided than the denoiser has, or the conditionings do not fit together.
    """
    guidance.check_channels(denoiser.in_channels)
    conditional = denoiser.prepare(conditioning)
    both = None if guidance.scale == 1 else concatenate(conditional, denoiser.prepare(unconditional))

    def velocity(x_BCHW: Tensor, t: float) -> Tensor:
        if both is None or not guidance.acts_at(t):
            return _forward(denoiser, x_BCHW, t, conditional)
        conditional_BCHW, unconditional_BCHW = _forward(denoiser, x_BCHW.repeat(2, 1, 1, 1), t, both).chunk(2)
        return guidance.combine(conditional_BCHW, unconditional_BCHW)

    return velocity


def concatenate(first: PreparedConditioning, second: PreparedConditioning) -> PreparedConditioning:
    """Two prepared conditionings of one denoiser, as one of twice the batch.

    Raises:
        ValueError: they differ in the shape of anything but a mask that one of them lacks.
    """
    return _joined(first, second, lambda one, other: torch.cat((one, other)))


def repeated(prepared: PreparedConditioning, count: int) -> PreparedConditioning:
    """A prepared conditioning of one sample as that of ``count``, without their memory."""
    return prepared.mapped(lambda tensor: tensor.expand(count, *tensor.shape[1:]))


def replace_rows(
    prepared: PreparedConditioning, replacement: PreparedConditioning, replaced_B: Tensor
) -> PreparedConditioning:
    """A prepared conditioning with some samples' rows taken from another of the same denoiser.

    Args:
        prepared: of the B samples.
        replacement: likewise.
        replaced_B: bool, True where the replacement's row is taken.

    Raises:
        ValueError: they differ in the shape of anything but a mask that one of them lacks.
    """

    def chosen(one: Tensor, other: Tensor) -> Tensor:
        return torch.where(replaced_B.view(-1, *[1] * (one.ndim - 1)), other, one)

    return _joined(prepared, replacement, chosen)


def _joined(first: PreparedConditioning, second: PreparedConditioning, join: Join) -> PreparedConditioning:
    """Two prepared conditionings tensor by tensor."""
    first_mask_BS, second_mask_BS = first.mask_BS, second.mask_BS
    # No mask means that every token may be attended to: beside a mask, it has to say so.
    if first_mask_BS is None and second_mask_BS is not None:
        first_mask_BS = torch.ones_like(second_mask_BS)
    elif first_mask_BS is not None and second_mask_BS is None:
        second_mask_BS = torch.ones_like(first_mask_BS)
    return PreparedConditioning(
        keys=tuple(_join(a, b, join) for a, b in zip(first.keys, second.keys, strict=True)),
        values=tuple(_join(a, b, join) for a, b in zip(first.values, second.values, strict=True)),
        mask_BS=_join_optional(first_mask_BS, second_mask_BS, join),
        embedding_BE=_join_optional(first.embedding_BE, second.embedding_BE, join),
        tokens_BSE=_join_optional(first.tokens_BSE, second.tokens_BSE, join),
    )


def _join(first: Tensor, second: Tensor, join: Join) -> Tensor:
    if first.shape != second.shape:
        raise ValueError(
            f"cannot batch conditionings of shapes {tuple(first.shape)} and {tuple(second.shape)}; "
            "give both the same number of rows, and pad and mask both to the same number of tokens"
        )
    return join(first, second)


def _join_optional(first: Tensor | None, second: Tensor | None, join: Join) -> Tensor | None:
    if first is None and second is None:
        return None
    if first is None or second is None:
        raise ValueError("one conditioning has a pooled vector and the other has none; give it to both or to neither")
    return _join(first, second, join)


def _forward(denoiser: Denoiser, x_BCHW: Tensor, t: float, conditioning: PreparedConditioning) -> Tensor:
    output: DenoiserOutput = denoiser(x_BCHW, x_BCHW.new_full((len(x_BCHW),), t), conditioning)
    return output.velocity_BCHW.to(x_BCHW.dtype)
