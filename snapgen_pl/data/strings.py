"""Texts as tensors, for files and processes that are to hold tensors alone."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def join_strings(strings: Sequence[str]) -> dict[str, Tensor]:
    """Texts one behind the other: ``text``, uint8, their UTF-8, and ``end``, int64 (N,), where each ends."""
    encoded = [string.encode() for string in strings]
    lengths = torch.tensor([len(string) for string in encoded])
    text = torch.from_numpy(np.frombuffer(b"".join(encoded), dtype=np.uint8).copy())
    return {"text": text, "end": lengths.cumsum(0)}


def string_at(text: NDArray[np.uint8], end: NDArray[np.int64], index: int) -> str:
    """One of the texts."""
    start = int(end[index - 1]) if index else 0
    return text[start : int(end[index])].tobytes().decode()
