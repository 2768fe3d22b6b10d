"""What an image is asked for with: the label of its class, or a text."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor


class TextStates(NamedTuple):
    """Texts as an encoder states them.

    Attributes:
        tokens_BSD: token states, each row padded to the encoder's ``tokens``.
        mask_BS: bool, True where there is text; None where padding is to be attended to as well.
        pooled_BP: one vector a text; None where the encoder gives none.
    """

    tokens_BSD: Tensor
    mask_BS: Tensor | None
    pooled_BP: Tensor | None = None


class Texts(NamedTuple):
    """A batch of texts.

    Attributes:
        captions: one a sample.
        states: what encoders made of them, by the encoder's name, where that is at hand already.
        kept_BE: bool, a column an encoder of the conditioner's, in its order: False where the sample does without it.
            None keeps all.
    """

    captions: tuple[str, ...]
    states: Mapping[str, TextStates]
    kept_BE: Tensor | None = None


# Labels are int64 (B,).
Condition: TypeAlias = Tensor | Texts


def in_words(condition: Condition, classes: Sequence[str]) -> list[str]:
    """Conditions in words: names of classes, or the texts themselves.

    Args:
        condition: labels or texts.
        classes: names of classes; labels index them.
    """
    return (
        list(condition.captions) if isinstance(condition, Texts) else [classes[label] for label in condition.tolist()]
    )


def first(condition: Condition) -> Condition:
    """The condition of the first sample alone."""
    return _chosen(condition, lambda rows: rows[:1], lambda captions: captions[:1])


def rolled(condition: Condition) -> Condition:
    """Each sample with the condition of the one before it, the first with the last's."""
    return _chosen(condition, lambda rows: rows.roll(1, 0), lambda captions: captions[-1:] + captions[:-1])


def alike(one: Condition, other: Condition) -> Tensor:
    """Where two batches ask for the same: bool (B,), of texts on the CPU."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        assert isinstance(one, Tensor), one
        assert isinstance(other, Tensor), other
        return one == other
    return torch.tensor([a == b for a, b in zip(one.captions, other.captions, strict=True)])


def _chosen(
    condition: Condition,
    rows: Callable[[Tensor], Tensor],
    captions: Callable[[tuple[str, ...]], tuple[str, ...]],
) -> Condition:
    """A condition with other rows; of captions, the same ones."""
    if isinstance(condition, Tensor):
        return rows(condition)

    def optional(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else rows(tensor)

    states = {
        name: TextStates(rows(state.tokens_BSD), optional(state.mask_BS), optional(state.pooled_BP))
        for name, state in condition.states.items()
    }
    return Texts(captions(condition.captions), states, optional(condition.kept_BE))


def labels(condition: Condition) -> Tensor:
    """The condition as labels.

    Raises:
        ValueError: where it is texts.
    """
    if isinstance(condition, Tensor):
        return condition
    raise ValueError("labels of classes are needed here, but the data give captions; set --data.condition label")


def texts(condition: Condition) -> Texts:
    """The condition as texts.

    Raises:
        ValueError: where it is labels.
    """
    if isinstance(condition, Texts):
        return condition
    raise ValueError("captions are needed here, but the data give labels of classes; set --data.condition caption")
