"""Networks that a stage uses but does not train: autoencoders, teachers, text encoders."""

from typing import Any, Generic, TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


class Frozen(Generic[M]):
    """Keeps a network out of its owner's module tree, and so out of checkpoints, optimizers and averages.

    Args:
        module: set to eval mode and to need no gradients.
    """

    def __init__(self, module: M) -> None:
        self.module: M = module.eval().requires_grad_(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Frozen[M]":
        """Copies of the owner share the network: an 8 B teacher is not to be held twice."""
        return self
