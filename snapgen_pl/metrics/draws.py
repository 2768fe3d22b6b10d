"""Which images a measurement takes: of the training set, and of the model. The same in every run on the same data."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from snapgen_pl import rng
from snapgen_pl.data.source import LabelBatch

LabelPolicy: TypeAlias = Literal["frequencies", "uniform"]

_SEED = 0  # not the run's: measurements compare across runs


def uniform(classes: int, count: int, seed: int = _SEED) -> LabelBatch:
    """A request for ``count`` samples, each of any class alike: the protocol of ImageNet (section 8).

    The label at a position depends on (seed, position) alone.
    """
    position_B = torch.arange(count)
    drawn_B = rng.uniform(seed, rng.Stream.LABEL, position_B).double()
    return LabelBatch((drawn_B * classes).long(), position_B)


def proportional(labels: Tensor, count: int) -> LabelBatch:
    """A request for ``count`` samples whose classes are as frequent as in the training set.

    Largest remainders, in a fixed random order, so that any leading part is a fair draw too.

    Args:
        labels: int64 (N,), the training images' classes.
        count: how many samples to ask for.

    Returns:
        Labels, and the positions 0 ... count - 1.
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
    return LabelBatch(drawn[_permutation(count)], torch.arange(count))


def disjoint(total: int, sizes: tuple[int, ...]) -> tuple[list[int], ...]:
    """Disjoint random subsets of range(total), each sorted; the last is cut where too few indices are left."""
    order = _permutation(total)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(sorted(order[start : start + size].tolist()) for start, size in zip(starts, sizes, strict=True))


def _permutation(count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(_SEED))
