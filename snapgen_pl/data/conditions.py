"""What the images of a set are asked for with, by their place in it."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from snapgen_pl.conditioning.condition import Condition, Texts, TextStates


class Conditions(Protocol):
    """Indexed conditions."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def batch(self, indices: Sequence[int]) -> Condition:
        """Those at these places."""
        ...


class Labels:
    """Labels of classes.

    Args:
        label_N: int64.
    """

    def __init__(self, label_N: Tensor) -> None:
        self.label_N = label_N

    def __len__(self) -> int:
        """How many there are."""
        return len(self.label_N)

    def batch(self, indices: Sequence[int]) -> Tensor:
        """int64 (B,)."""
        return self.label_N[list(indices)]


@runtime_checkable
class Captioned(Protocol):
    """A set whose images have captions."""

    def __len__(self) -> int:
        """The number of images."""
        ...

    def caption(self, index: int) -> str:
        """A sentence that says what the image shows."""
        ...


class StoredStates(Protocol):
    """What an encoder made of a set's captions."""

    def load(self, indices: Sequence[int]) -> TextStates:
        """The states of the captions at these places."""
        ...


class Captions:
    """Captions of images.

    Args:
        images: the set.
        states: what encoders made of the captions, by the encoder's name.
    """

    def __init__(self, images: Captioned, states: Mapping[str, StoredStates] | None = None) -> None:
        self.images, self.states = images, dict(states or {})

    def __len__(self) -> int:
        """How many there are."""
        return len(self.images)

    def batch(self, indices: Sequence[int]) -> Texts:
        """The captions, with what is stored of them."""
        captions = tuple(self.images.caption(index) for index in indices)
        return Texts(captions, {name: stored.load(indices) for name, stored in self.states.items()})


class Prompts:
    """Texts as they are given.

    Args:
        prompts: one or more.
    """

    def __init__(self, prompts: Sequence[str]) -> None:
        self.prompts = tuple(prompts)

    def __len__(self) -> int:
        """How many there are."""
        return len(self.prompts)

    def batch(self, indices: Sequence[int]) -> Texts:
        """The texts at these places."""
        return Texts(tuple(self.prompts[index] for index in indices), {})
