"""Timestep-aware scaling of SnapGen: how far a sample leans on the data, and how far on the teacher, by its time."""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from snapgen_pl.distill.bin_means import BinMeans
from snapgen_pl.distill.loss_terms import CombinedLoss, LossTerms, Role, raw_means
from snapgen_pl.flow.timesteps import LogitNormal

Ratio = Literal["sample", "bin"]

_SCALED: tuple[Role, ...] = ("kd", "feature")
_DENSITY = LogitNormal()
_PEAK = 4 / math.sqrt(2 * math.pi)


def logit_normal_lambda(t: Tensor) -> Tensor:
    """lambda(t) = exp(-logit(t)^2 / 2) / (4 t (1 - t)): the density of logit-normal(0, 1) over its peak, at t = 0.5.

    That it is this density, normalised, is reported; by what, is decided here.

    Args:
        t: times that the network sees, in [0, 1], of any shape.

    Returns:
        fp32 in [0, 1], of that shape; 0 at t = 0 and t = 1.
    """
    return _DENSITY.pdf(t.float()) / _PEAK


def check_roles(roles: Mapping[str, Role]) -> None:
    """Checks that there is a task, and something to scale it against.

    Args:
        roles: of all terms, by name.

    Raises:
        ValueError: naming the terms that there are.
    """
    if "task" not in roles.values() or not any(role in _SCALED for role in roles.values()):
        raise ValueError(
            f"timestep-aware scaling needs a term of role task and one of role kd or feature; there are {dict(roles)}: "
            "train a module that distils, or leave the scaling out"
        )


class TimestepAwareScaling:
    """Combines losses as S(L_task, L_kd) + S(L_task, L_featkd), or one of these where the other has no terms.

    S(L_task, L) = mean over the batch of lambda L_task + (1 - lambda) r L, where r = |L_task| / |L| without gradients.
    Easy times, in the middle, lean on the data, hard ones on the teacher. While no r is clamped, S has the value of
    L_task whatever lambda and L are (with ratios per bin, on average): what the teacher adds is in the gradient, and
    how near it is only the raw means tell.

    A role's L is the sum of its terms, which must have one weight; S is multiplied by it and by the task's. Terms of
    other roles are added as weight times mean. Everything is in fp32.

    Logs the batch's means of ``lambda``, of r as ``ratio_<role>``, and of each term, unweighted, by its name; and the
    share of samples whose r is clamped as ``clamped_<role>``.

    Args:
        lambda_max: lambda is at most this, in [0, 1].
        ratio_max: r is at most this, for r grows without bounds as the student nears the teacher.
        ratio: whether r is each sample's own, or that of the running means of
            :class:`~snapgen_pl.distill.bin_means.BinMeans` where the sample's time lies. Running means grow with every
            batch, so that under them accumulation is not the same as a larger batch.

    Raises:
        ValueError: for an argument out of its range.
    """

    def __init__(self, lambda_max: float = 1.0, ratio_max: float = 50.0, ratio: Ratio = "sample") -> None:
        if not 0 <= lambda_max <= 1:
            raise ValueError(f"lambda_max is {lambda_max}; it must lie in [0, 1]")
        if not (math.isfinite(ratio_max) and ratio_max > 0):
            raise ValueError(f"ratio_max is {ratio_max}; it must be a finite number above 0")
        self.lambda_max, self.ratio_max = lambda_max, ratio_max
        self._bins = BinMeans() if ratio == "bin" else None

    def __call__(self, terms: LossTerms) -> CombinedLoss:
        """Combines.

        Raises:
            ValueError: for terms without a task, without kd and feature, or of one such role with several weights.
        """
        check_roles({term.name: term.role for term in terms.terms})
        task = _joined(terms, "task")
        present = {term.role for term in terms.terms}
        others: dict[str, _Joined] = {role: _joined(terms, role) for role in _SCALED if role in present}
        size = self._sizes(terms.t_B, {"task": task, **others})
        lambda_B = logit_normal_lambda(terms.t_B).clamp(max=self.lambda_max)
        loss, logs = task.value_B.new_zeros(()), {"lambda": lambda_B.mean()}
        for role, other in others.items():
            ratio_B = self._ratio(size["task"], size[role])
            scaled_B = lambda_B * task.value_B + (1 - lambda_B) * ratio_B * other.value_B
            loss = loss + task.weight * other.weight * scaled_B.mean()
            logs |= {f"ratio_{role}": ratio_B.mean(), f"clamped_{role}": (ratio_B >= self.ratio_max).float().mean()}
        for term in terms.terms:
            if term.role != "task" and term.role not in others:
                loss = loss + term.weight * term.value_B.float().mean()
        return CombinedLoss(loss, logs | raw_means(terms))

    def state_dict(self) -> dict[str, Tensor]:
        """The running means; nothing where ratios are each sample's own."""
        return {} if self._bins is None else self._bins.state_dict()

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Takes up running means, where they are used."""
        if self._bins is not None:
            self._bins.load_state_dict(state_dict)

    def _sizes(self, t_B: Tensor, losses: Mapping[str, "_Joined"]) -> dict[str, Tensor]:
        own = {role: loss.value_B.detach().abs() for role, loss in losses.items()}
        if self._bins is None:
            return own
        self._bins.update(t_B, own)
        return {role: self._bins.mean(role, t_B) for role in own}

    def _ratio(self, task: Tensor, other: Tensor) -> Tensor:
        # Compared before they are divided: where both are 0, their quotient is not a number.
        return torch.where(other * self.ratio_max > task, task / other, self.ratio_max)


class _Joined(NamedTuple):
    """The terms of one role as one."""

    weight: float | Tensor
    value_B: Tensor


def _joined(terms: LossTerms, role: Role) -> _Joined:
    chosen = [term for term in terms.terms if term.role == role]
    weights = {term.name: term.weight for term in chosen}
    if len(set(weights.values())) > 1:
        raise ValueError(
            f"terms of role {role} have the weights {weights}; they are summed before they are scaled: "
            "give them one weight"
        )
    return _Joined(chosen[0].weight, torch.stack([term.value_B.float() for term in chosen]).sum(0))
