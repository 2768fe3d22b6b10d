"""Which images a measurement takes: of the training set, and of the model. The same in every run on the same data."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from snapgen_pl import rng
from snapgen_pl.data.conditions import Conditions, Labels
from snapgen_pl.data.requests import Requests

# What is asked for: what training images have, as often; every class alike; what held-out images have, in their order;
# prompts, in theirs.
LabelPolicy: TypeAlias = Literal["frequencies", "uniform", "held_out", "prompts"]

_SEED = 0  # not the run's: measurements compare across runs


def uniform(classes: int, count: int, seed: int = _SEED) -> Requests:
    """Requests for ``count`` samples, each of any class alike: the protocol of ImageNet (section 8).

    The label at a position depends on (seed, position) alone.
    """
    drawn_N = rng.uniform(seed, rng.Stream.LABEL, torch.arange(count)).double()
    return Requests(Labels(torch.arange(classes)), (drawn_N * classes).long().tolist())


def proportional(labels: Tensor, count: int) -> Requests:
    """Requests for ``count`` samples whose classes are as frequent as in the training set.

    Largest remainders, in a fixed random order, so that any leading part is a fair draw too.

    Args:
        labels: int64 (N,), the training images' classes.
        count: how many samples to ask for.
    """
    if not len(labels) or count < 1:
        raise ValueError(
            f"cannot draw {count} labels like those of {len(labels)} training images; both must be positive"
        )
    quota = torch.bincount(labels).double() * count / len(labels)
    counts = quota.floor().long()
    left_over = (quota - counts).argsort(descending=True, stable=True)[: count - int(counts.sum())]
    counts[left_over] += 1
    drawn = torch.arange(len(counts)).repeat_interleave(counts)
    return Requests(Labels(torch.arange(len(counts))), drawn[_permutation(count)].tolist())


def spread(conditions: Conditions, count: int) -> Requests:
    """Requests for ``count`` samples with the conditions of a set, in a random order, each as often as any other.

    Any leading part is a fair draw too.
    """
    if not len(conditions) or count < 1:
        raise ValueError(f"cannot draw {count} samples like {len(conditions)} training images; both must be positive")
    order = _permutation(len(conditions)).tolist()
    return Requests(conditions, [order[position % len(order)] for position in range(count)])


def in_order(conditions: Conditions, count: int) -> Requests:
    """Requests for ``count`` samples with the conditions of a set, in its order, round after round."""
    return Requests(conditions, [position % len(conditions) for position in range(count)])


def disjoint(total: int, sizes: tuple[int, ...]) -> tuple[list[int], ...]:
    """Disjoint random subsets of range(total), each sorted; the last is cut where too few indices are left."""
    order = _permutation(total)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(sorted(order[start : start + size].tolist()) for start, size in zip(starts, sizes, strict=True))


def _permutation(count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(_SEED))
