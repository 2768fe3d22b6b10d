"""Rules of the Neural Engine that can be checked in a package without one.

Sources: Apple's "Deploying Transformers on the Apple Neural Engine" (2022) and ml-stable-diffusion; the limits of sides
partly from reports of the community. Keeping to them does not prove that a model runs there: only a Mac tells.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from snapgen_pl.export.constant import TensorType
from snapgen_pl.export.options import ISLAND_INPUT
from snapgen_pl.export.package import Package

Rule = Literal["rank", "dtype", "axis"]
MAX_RANK = 5
MAX_SIDE = 16_384  # of height, width and depth
MAX_CHANNELS = 65_536  # and of the batch
MIN_LAST_AXIS = 32  # elements: narrower rows are padded to 64 bytes each
LEAVES_ISLAND = ("cast", "conv", "linear", "matmul")


class Violation(NamedTuple):
    """A value that the Neural Engine takes badly, or not at all.

    Attributes:
        rule: ``rank`` above 5, ``dtype`` other than float16 outside the timestep's island, or ``axis``: sides that are
            too long, or a last one that is too short for its tensor.
        operation: that makes it, its type and name.
        value: its type.
    """

    rule: Rule
    operation: str
    value: str


def violations(package: Package) -> list[Violation]:
    """All violations, in the order of operations; constants are none."""
    return list(_violations(package))


def _violations(package: Package) -> Iterator[Violation]:
    island = _island(package)
    for operation in package.operations:
        if operation.type == "const" or operation.type.startswith("constexpr_"):
            continue
        for name, made in operation.outputs.items():
            if not made.dtype.startswith("FLOAT"):
                continue
            if len(made.shape) > MAX_RANK:
                yield Violation("rank", str(operation), str(made))
            if made.dtype != "FLOAT16" and name not in island:
                yield Violation("dtype", str(operation), str(made))
            if not _sides_fit(made):
                yield Violation("axis", str(operation), str(made))


def _sides_fit(made: TensorType) -> bool:
    """Whether a tensor fits, and wastes little; one of few elements wastes little whatever its shape."""
    last = made.shape[-1] if made.shape else 1
    if made.size > MIN_LAST_AXIS and last < MIN_LAST_AXIS:
        return False
    sides, channels = made.shape[2:], made.shape[:2]
    return last <= MAX_SIDE and all(side <= MAX_SIDE for side in sides) and all(c <= MAX_CHANNELS for c in channels)


def _island(package: Package) -> set[str]:
    """What is computed of the timestep alone, before its first product with weights."""
    island = {ISLAND_INPUT}
    constants = {name for operation in package.operations if operation.type == "const" for name in operation.outputs}
    for operation in package.operations:
        read = {name for bound in operation.inputs.values() for name in bound if isinstance(name, str)} - constants
        if read and read <= island and operation.type not in LEAVES_ISLAND:
            island |= set(operation.outputs)
    return island
