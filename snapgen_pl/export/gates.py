"""What a package must hold to before it is kept: gates, measured by evaluating it on an example.

A. The package in float32 is what torch computes, to a relative L2 of 1e-5: no operator was lowered to another one.
B. The package in float16 is what torch computes, to a PSNR of 50 dB.
C. No value on the way, in float16, is NaN or infinite.
D. The package with compressed weights is what torch computes, to the PSNR that its scheme leaves of a weight by itself.

A is needed even where float16 alone ships: an epsilon of 1e-4 for none, or GELU by tanh for the exact one, are lost in
float16's own rounding (relative L2 of 3e-5 in a UNet, against 1e-3).

D's limit is the scheme's own. Of normal numbers, the best 2^b values leave an error of sqrt(3) pi / 2 x 4^-b of their
variance (Panter and Dite, 1951): 43.8 dB for 8 bits, 31.8 dB for 6. 255 even steps over four deviations to each side
leave 1/12 of a step's square: 40.9 dB. A network adds up the errors of all its weights, but a PSNR is told by the
largest value, some 10 dB above the root mean square: one that spreads errors without making more of them holds to it.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from snapgen_pl.export.difference import Difference, difference, worst
from snapgen_pl.export.evaluate import Extreme, evaluate
from snapgen_pl.export.example import Example
from snapgen_pl.export.options import Scheme
from snapgen_pl.export.package import Operation, Package

MAX_RELATIVE_L2 = 1e-5
MIN_PSNR_DB = 50.0


def _palette_db(bits: int) -> float:
    return -10 * math.log10(math.sqrt(3) * math.pi / 2 * 4.0**-bits)


MIN_COMPRESSED_DB: Mapping[Scheme, float] = {
    "palette8": _palette_db(8),
    "palette6": _palette_db(6),
    "int8": -10 * math.log10((8 / 255) ** 2 / 12),
}

Progress = Callable[[Sequence[Operation]], Iterable[Operation]]


class Measurement(NamedTuple):
    """A package evaluated on an example.

    Attributes:
        difference: of its outputs from torch's, the worst of each.
        largest: for each type of operation, where its results are largest; the largest first.
        nonfinite: operations that gave NaN or infinities, in order.
        seconds: that it took.
    """

    difference: Difference
    largest: tuple[Extreme, ...]
    nonfinite: tuple[Extreme, ...]
    seconds: float


def measure(package: Package, example: Example, progress: Progress = iter) -> Measurement:
    """Evaluates a package in its declared types.

    Args:
        package: to evaluate.
        example: of the graph that it was made of.
        progress: see :func:`~snapgen_pl.export.evaluate.evaluate`.
    """
    start = time.perf_counter()
    found = evaluate(package, example.inputs, progress=progress)
    differences = {name: difference(found.outputs[name], tensor) for name, tensor in example.expected.items()}
    by_size = sorted(found.extremes, key=lambda extreme: extreme.largest, reverse=True)
    largest = {extreme.type: extreme for extreme in reversed(by_size)}
    nonfinite = tuple(extreme for extreme in found.extremes if extreme.nonfinite)
    seconds = time.perf_counter() - start
    return Measurement(worst(differences), tuple(sorted(largest.values(), key=by_size.index)), nonfinite, seconds)


def gate_a(measured: Measurement) -> str | None:
    """What is wrong with a package in float32; None where nothing is."""
    found = measured.difference.relative_l2
    if found < MAX_RELATIVE_L2:
        return None
    return f"gate A: in float32 it is off by a relative L2 of {found:.1e}, {MAX_RELATIVE_L2:.0e} is allowed"


def gate_b(measured: Measurement) -> str | None:
    """What is wrong with a package in float16; None where nothing is."""
    found = measured.difference.psnr_db
    if found >= MIN_PSNR_DB:
        return None
    return f"gate B: in float16 it has {found:.1f} dB, {MIN_PSNR_DB:.0f} dB are needed"


def gate_c(measured: Measurement) -> str | None:
    """The first operation that gave NaN or infinities; None where there is none."""
    if not measured.nonfinite:
        return None
    first = measured.nonfinite[0]
    return (
        f"gate C: {first.type} {first.operation!r} gives {first.nonfinite} values that are NaN or infinite; "
        f"its largest finite one is {first.largest:g}"
    )


def gate_d(measured: Measurement, scheme: Scheme) -> str | None:
    """What is wrong with a package of compressed weights; None where nothing is."""
    found, needed = measured.difference.psnr_db, MIN_COMPRESSED_DB[scheme]
    if found >= needed:
        return None
    return f"gate D: as {scheme} it has {found:.1f} dB, {needed:.1f} dB are needed; keep it whole, or compress it less"
