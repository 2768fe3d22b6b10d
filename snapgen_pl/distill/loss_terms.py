"""Per-sample loss terms, and the protocol of what makes one number of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

Role = Literal["task", "kd", "feature", "adversarial"]


class LossTerm(NamedTuple):
    """One term of an objective.

    Attributes:
        name: its name in logs.
        role: what a combiner may do with it.
        value_B: fp32, one value a sample, already averaged over C, H and W.
        weight: of the term in the loss, a scalar; logs stay unweighted.
    """

    name: str
    role: Role
    value_B: Tensor
    weight: float | Tensor = 1.0


class LossTerms(NamedTuple):
    """All terms of one batch and the times they were taken at.

    Attributes:
        t_B: the times the network saw, in [0, 1].
        terms: at least one term.
    """

    t_B: Tensor
    terms: tuple[LossTerm, ...]

    def detached(self) -> "LossTerms":
        """The same values without gradients."""
        return LossTerms(self.t_B, tuple(term._replace(value_B=term.value_B.detach()) for term in self.terms))


class CombinedLoss(NamedTuple):
    """What a combiner returns.

    Attributes:
        loss: the scalar to differentiate.
        logs: scalars to log, detached, by name.
    """

    loss: Tensor
    logs: dict[str, Tensor]


class LossCombiner(Protocol):
    """Makes one loss of many terms; runs outside the compiled forward."""

    def __call__(self, terms: LossTerms) -> CombinedLoss:
        """Combines the terms of a batch."""
        ...


@runtime_checkable
class CombinesLosses(Protocol):
    """A module that leaves it to ``combine`` to make one loss of its terms.

    Attributes:
        combine: is given the terms of each training batch.
        loss_roles: by name, the role of every term that it makes.
    """

    combine: LossCombiner
    loss_roles: Mapping[str, Role]


@dataclass(frozen=True)
class WeightedSum:
    """The default combiner: the sum over terms of weight times mean over the batch."""

    def __call__(self, terms: LossTerms) -> CombinedLoss:
        """Sums; logs each mean when there are several terms."""
        loss = sum((term.weight * term.value_B.mean() for term in terms.terms), start=terms.t_B.new_zeros(()))
        return CombinedLoss(loss, raw_means(terms) if len(terms.terms) > 1 else {})


def raw_means(terms: LossTerms) -> dict[str, Tensor]:
    """Each term's mean over the batch by name, unweighted and detached, for logs."""
    return {term.name: term.value_B.detach().float().mean() for term in terms.terms}


def no_time(position_B: Tensor) -> Tensor:
    """The times of samples that have none, as :class:`LossTerms` holds them: 0."""
    return torch.zeros_like(position_B, dtype=torch.float32)
