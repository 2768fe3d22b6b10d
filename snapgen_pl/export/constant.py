"""Types of a Core ML program's values, and the constants that it holds."""

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Value = Tensor | str  # what an operation reads and makes; strings are constants only
StoredArray = npt.NDArray[np.generic]


class Element(NamedTuple):
    """How one number of a type is stored in a package, and held here.

    Attributes:
        bits: its width in a package; under 8, elements are packed from the least significant bit on.
        stored: numpy's name of the stored type, little-endian; empty where elements are packed.
        held: torch's type. Unsigned ones for which torch lacks arithmetic are held in the next wider signed type.
        lowest: the least integer; no bound for floating ones.
        highest: the greatest integer.
    """

    bits: int
    stored: str
    held: torch.dtype
    lowest: int = 0
    highest: int = 0


def _integer(bits: int, held: torch.dtype, *, signed: bool) -> Element:
    stored = f"<{'i' if signed else 'u'}{bits // 8}" if bits >= 8 else ""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return Element(bits, stored, held, low, high)


ELEMENTS = {
    "BOOL": Element(8, "?", torch.bool, 0, 1),
    "FLOAT16": Element(16, "<f2", torch.float16),
    "FLOAT32": Element(32, "<f4", torch.float32),
    "INT4": _integer(4, torch.int8, signed=True),
    "INT8": _integer(8, torch.int8, signed=True),
    "INT16": _integer(16, torch.int16, signed=True),
    "INT32": _integer(32, torch.int32, signed=True),
    "INT64": _integer(64, torch.int64, signed=True),
    "UINT1": _integer(1, torch.uint8, signed=False),
    "UINT2": _integer(2, torch.uint8, signed=False),
    "UINT3": _integer(3, torch.uint8, signed=False),
    "UINT4": _integer(4, torch.uint8, signed=False),
    "UINT6": _integer(6, torch.uint8, signed=False),
    "UINT8": _integer(8, torch.uint8, signed=False),
    "UINT16": _integer(16, torch.int32, signed=False),
    "UINT32": _integer(32, torch.int64, signed=False),
}


class TensorType(NamedTuple):
    """What a program declares of a value.

    Attributes:
        dtype: as Core ML writes it: a key of :data:`ELEMENTS`, or STRING.
        shape: empty for a scalar.
    """

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"

    @property
    def size(self) -> int:
        """How many elements it has."""
        return prod(self.shape)

    @property
    def stored_bytes(self) -> int:
        """How many bytes its elements take in a package."""
        return -(-self.size * ELEMENTS[self.dtype].bits // 8)


@dataclass(frozen=True, eq=False)
class Constant:
    """A constant of a program; one of the weights file stays there until :meth:`value` is used.

    Attributes:
        type: what the package declares.
        stored: its elements as stored, flat: of the stored type, bytes where elements are packed; or a string.
    """

    type: TensorType
    stored: StoredArray | str

    def value(self) -> Value:
        """The constant in the type that holds it, without a copy where torch has the stored type."""
        if isinstance(self.stored, str):
            return self.stored
        element = ELEMENTS[self.type.dtype]
        if element.bits < 8:
            return self._unpacked(self.stored, element).reshape(self.type.shape)
        if self.type.dtype in ("UINT16", "UINT32"):
            return torch.from_numpy(self.stored.astype("<i8")).to(element.held).reshape(self.type.shape)
        return torch.from_numpy(self.stored).reshape(self.type.shape)

    def _unpacked(self, packed: StoredArray, element: Element) -> Tensor:
        numbers = unpack(packed.view(np.uint8), element.bits, self.type.size).astype(np.int16)
        if element.lowest < 0:  # two's complement
            numbers[numbers > element.highest] -= 2**element.bits
        return torch.from_numpy(numbers).to(element.held)


def unpack(packed: npt.NDArray[np.uint8], bits: int, count: int) -> npt.NDArray[np.uint8]:
    """The first ``count`` numbers of ``bits`` bits, packed from each byte's least significant bit on.

    Raises:
        ValueError: where the bytes hold fewer.
    """
    if len(packed) * 8 < count * bits:
        raise ValueError(f"{len(packed)} bytes do not hold {count} numbers of {bits} bits; export the package again")
    each = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    return np.packbits(each, axis=1, bitorder="little").reshape(count)
