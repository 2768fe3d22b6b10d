"""A chip as two numbers: a roofline over counted operations, fitted to latencies.

Williams, Waterman and Patterson, Roofline: An Insightful Visual Performance Model, 2009; here summed over operations,
which follow each other: t = sum max(MACs / rate, bytes / bandwidth).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from snapgen_pl.models.traffic import Operation

_DECADES = 6  # that a chip's bytes a multiply-accumulate may lie from what the networks move
_ZOOMS, _POINTS = 4, 201


class Roofline(NamedTuple):
    """What a chip sustains.

    Attributes:
        rate: multiply-accumulates a second.
        bandwidth: bytes a second; infinite where memory is never waited for.
    """

    rate: float
    bandwidth: float

    def seconds(self, operations: Sequence[Operation]) -> float:
        """The time of operations that follow each other."""
        return sum(max(each.macs / self.rate, each.bytes / self.bandwidth) for each in operations)


def fit(networks: Sequence[Sequence[Operation]], seconds: Sequence[float], memory: bool = True) -> Roofline:
    """The chip on which networks take nearest to these times: least squares of the logarithm of estimate over time.

    Of the two numbers their ratio alone is searched: scaling both scales every estimate, so that the best scale is the
    geometric mean of what each network asks for. The limits, MACs alone and bytes alone, are among what is tried.

    Args:
        networks: operations of each.
        seconds: of each network.
        memory: whether bytes count; without them the one number fitted is the rate.

    Raises:
        ValueError: for networks without MACs or bytes, or fewer than one for each number.
    """
    if len(networks) != len(seconds) or len(networks) < 1 + memory:
        raise ValueError(f"{len(networks)} networks and {len(seconds)} times do not determine {1 + memory} numbers")
    work = [np.array([(each.macs, each.bytes) for each in network], dtype=np.float64) for network in networks]
    totals = np.array([each.sum(axis=0) for each in work])
    if not (totals > 0).all():
        raise ValueError("a network that is fitted needs multiply-accumulates and bytes")
    unit = totals.sum(axis=0)
    work, asked = [each / unit for each in work], np.log(seconds)

    def tried(exponents: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Sums of squares and best scales where bytes weigh 10**exponent times what MACs do."""
        weights = np.stack((1 / (1 + 10**exponents), 1 / (1 + 10**-exponents)), axis=-1)
        times = np.array([(each[:, None] * weights).max(axis=-1).sum(axis=0) for each in work])
        apart = np.log(times) - asked[:, None]
        return apart.var(axis=0), np.exp(apart.mean(axis=0))

    exponents = np.array([-np.inf])
    if memory:
        exponents = np.concatenate((exponents, np.linspace(-_DECADES, _DECADES, 5 * _POINTS), [np.inf]))
    with np.errstate(over="ignore"):
        best = exponents[tried(exponents)[0].argmin()]
        step = 2 * _DECADES / (5 * _POINTS)
        for _ in range(_ZOOMS if np.isfinite(best) else 0):
            exponents = np.linspace(best - step, best + step, _POINTS)
            best = exponents[tried(exponents)[0].argmin()]
            step *= 4 / _POINTS
        (scale,) = tried(np.array([best]))[1]
    with np.errstate(divide="ignore"):
        rate, bandwidth = unit * scale * np.array([1 + 10**best, 1 + 10**-best])
    return Roofline(float(rate), float(bandwidth))


def left_out(networks: Sequence[Sequence[Operation]], seconds: Sequence[float], memory: bool = True) -> list[Roofline]:
    """For each network the chip that fits the others alone; arguments as in :func:`fit`."""
    return [
        fit([*networks[:place], *networks[place + 1 :]], [*seconds[:place], *seconds[place + 1 :]], memory)
        for place in range(len(networks))
    ]
