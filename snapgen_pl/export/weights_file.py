"""The file that holds the weights of a Core ML package."""

import struct
from pathlib import Path

import numpy as np

from snapgen_pl.export.constant import ELEMENTS, StoredArray, TensorType

_HEADER = 64  # bytes; also those of each blob's metadata
_VERSION = 2
_SENTINEL = 0xDEADBEEF
# The file's own numbers of types.
_TYPES = {
    1: "FLOAT16", 2: "FLOAT32", 3: "UINT8", 4: "INT8", 6: "INT16", 7: "UINT16", 8: "INT4", 9: "UINT1", 10: "UINT2",
    11: "UINT4", 12: "UINT3", 13: "UINT6", 14: "INT32", 15: "UINT32",
}  # fmt: skip


class WeightsFile:
    """Reads a weights file through a memory map, so that nothing is copied.

    A header (count of blobs and version, two uint32, padded to 64 bytes) is followed by blobs: 64 bytes of metadata
    (sentinel and type, uint32; bytes, offset in the file and bits of padding, uint64), then the numbers.

    Raises:
        ValueError: if the file is missing, truncated, or of another version.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"its weights file {path.name} is missing; copy the package whole, or export it again")
        if path.stat().st_size < _HEADER:
            raise ValueError(f"its weights file {path.name} is truncated to its header; export it again")
        self._name = path.name
        # Copy on write: torch takes writable memory only, and nothing here writes.
        self._bytes = np.memmap(path, np.uint8, "c")
        _, version = struct.unpack("<II", self._bytes[:8].tobytes())
        if version != _VERSION:
            raise ValueError(
                f"its weights file {path.name} is of version {version}, not {_VERSION}; export it again with "
                "coremltools 9"
            )

    def read(self, offset: int, declared: TensorType) -> StoredArray:
        """The numbers as stored, flat.

        Args:
            offset: bytes from the file's begin to the blob's metadata.
            declared: what the program says of them.

        Raises:
            ValueError: where there is no blob, or it is not what the program declares.
        """
        if offset < _HEADER or offset + _HEADER > len(self._bytes):
            raise ValueError(f"{self._at(offset)} is out of its {len(self._bytes)} bytes; {_AGAIN}")
        sentinel, code, size, begin, padding = struct.unpack("<IIQQQ", self._bytes[offset : offset + 32].tobytes())
        if sentinel != _SENTINEL:
            raise ValueError(f"{self._at(offset)} begins with {sentinel:#x}, not with a blob's mark; {_AGAIN}")
        if begin < offset + _HEADER or begin % _HEADER or begin + size > len(self._bytes):
            raise ValueError(
                f"{self._at(offset)} has its {size} bytes at {begin}, out of the file's {len(self._bytes)} or out of "
                f"step; {_AGAIN}"
            )
        if _TYPES.get(code) != declared.dtype:
            raise ValueError(
                f"{self._at(offset)} holds {_TYPES.get(code, f'type {code}')}, declared {declared}; {_AGAIN}"
            )
        unused = 8 * declared.stored_bytes - declared.size * ELEMENTS[declared.dtype].bits
        if (size, padding) != (declared.stored_bytes, unused):
            raise ValueError(
                f"{self._at(offset)} has {size} bytes and {padding} bits of padding, {declared} takes "
                f"{declared.stored_bytes} and {unused}; {_AGAIN}"
            )
        return self._bytes[begin : begin + size].view(ELEMENTS[declared.dtype].stored or np.uint8)

    def _at(self, offset: int) -> str:
        return f"the blob at {offset} of {self._name}"


_AGAIN = "the package is damaged, export it again"
