"""Per-sample loss terms, and the protocol of what makes one number of them."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

Role = Literal["task", "kd", "feature", "adversarial"]


class LossTerm(NamedTuple):
    """One term of an objective.

    Attributes:
        name: its name in logs.
        role: what a combiner may do with it.
        value_B: fp32, one value a sample, already averaged over C, H and W.
    """

    name: str
    role: Role
    value_B: Tensor


class LossTerms(NamedTuple):
    """All terms of one batch and the times they were taken at.

    Attributes:
        t_B: the times the network saw, in [0, 1].
        terms: at least one term.
    """

    t_B: Tensor
    terms: tuple[LossTerm, ...]


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


@dataclass(frozen=True)
class SumOfMeans:
    """The default combiner: the sum over terms of their means over the batch."""

    def __call__(self, terms: LossTerms) -> CombinedLoss:
        """Sums the means; logs each mean when there are several terms."""
        means = {term.name: term.value_B.mean() for term in terms.terms}
        loss = sum(means.values(), start=terms.t_B.new_zeros(()))
        return CombinedLoss(loss, {name: mean.detach() for name, mean in means.items()} if len(means) > 1 else {})
