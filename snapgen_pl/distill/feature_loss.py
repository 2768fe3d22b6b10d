"""Distillation from a teacher's features: L_featkd of SnapGen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_NORM_EPS = 1e-6


@dataclass(frozen=True)
class FeaturePair:
    """A feature of the student, and the teacher's that it learns from.

    Args:
        student: name of the student's feature.
        teacher: name of the teacher's.
        student_channels: width of the student's.
        teacher_channels: width of the teacher's.
    """

    student: str
    teacher: str
    student_channels: int
    teacher_channels: int

    def check_channels(self, student: Mapping[str, int], teacher: Mapping[str, int]) -> None:
        """Checks the widths against those of the networks' features, by name.

        Raises:
            ValueError: naming the width that is wrong.
        """
        _check_width(self, "student", student[self.student], self.student_channels)
        _check_width(self, "teacher", teacher[self.teacher], self.teacher_channels)


class FeatureLoss(nn.Module):
    """L_featkd = the sum over pairs of the mean over C, H, W of (norm(f_teacher) - psi(f_student))^2.

    psi, a 1x1 convolution a pair, is trained with the student and thrown away after; the sum and psi are the paper's,
    the rest is decided here. The student's grid is brought to the teacher's: averaged over areas where it is finer,
    interpolated bilinearly where it is coarser. norm is a LayerNorm over channels, at each place, without parameters:
    large transformers have a few channels that are hundreds of times larger than the others, and places differ in
    them. All of it is in fp32, whatever the autocast.

    Args:
        pairs: at least one; a feature may be in several.

    Raises:
        ValueError: for no pairs.
    """

    def __init__(self, pairs: Sequence[FeaturePair]) -> None:
        super().__init__()
        if not pairs:
            raise ValueError("FeatureLoss has no pairs; give it at least one, or leave the loss out")
        self.pairs = tuple(pairs)
        self.projections = nn.ModuleList(nn.Conv2d(pair.student_channels, pair.teacher_channels, 1) for pair in pairs)

    @property
    def student_features(self) -> tuple[str, ...]:
        """What to ask the student for, a name a pair."""
        return tuple(pair.student for pair in self.pairs)

    @property
    def teacher_features(self) -> tuple[str, ...]:
        """What to ask the teacher for, a name a pair."""
        return tuple(pair.teacher for pair in self.pairs)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Compares features of the same x_t and t; gradients reach the student's and psi.

        Args:
            student: (B, student_channels, H, W) a pair, as ``student_features`` asks for them.
            teacher: (B, teacher_channels, H', W') a pair, as ``teacher_features`` asks for them.

        Returns:
            One fp32 value a sample, (B,).

        Raises:
            ValueError: where features are not as wide as their pair says.
        """
        with torch.autocast(student[0].device.type, enabled=False):
            losses = [
                _pair_loss(pair, projection, student_BCHW.float(), teacher_BCHW.detach().float())
                for pair, projection, student_BCHW, teacher_BCHW in zip(
                    self.pairs, self.projections, student, teacher, strict=True
                )
            ]
            return torch.stack(losses).sum(0)


def _pair_loss(pair: FeaturePair, projection: nn.Module, student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    _check_width(pair, "student", student_BCHW.shape[1], pair.student_channels)
    _check_width(pair, "teacher", teacher_BCHW.shape[1], pair.teacher_channels)
    guess_BCHW: Tensor = projection(_on_grid(student_BCHW, teacher_BCHW.shape[-2:]))
    target_BHWC = F.layer_norm(teacher_BCHW.movedim(1, -1), (pair.teacher_channels,), eps=_NORM_EPS)
    return (guess_BCHW.movedim(1, -1) - target_BHWC).square().mean(dim=(1, 2, 3))


def _on_grid(x_BCHW: Tensor, grid: torch.Size) -> Tensor:
    height, width = x_BCHW.shape[-2:]
    if (height, width) == tuple(grid):
        return x_BCHW
    if height >= grid[0] and width >= grid[1]:
        return F.interpolate(x_BCHW, grid, mode="area")
    return F.interpolate(x_BCHW, grid, mode="bilinear", align_corners=False)


def _check_width(pair: FeaturePair, whose: str, found: int, channels: int) -> None:
    if found != channels:
        raise ValueError(
            f"feature pair {pair.student} -> {pair.teacher}: the {whose}'s feature has {found} channels, the pair says "
            f"{channels}; set its {whose}_channels to {found}"
        )
