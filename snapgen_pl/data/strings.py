"""Texts as tensors, for files that hold tensors alone."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Strings(NamedTuple):
    """Texts, one behind the other.

    Attributes:
        text: uint8, their UTF-8.
        end: int64 (N,), where each ends.
    """

    text: Tensor
    end: Tensor


def join_strings(strings: Sequence[str]) -> Strings:
    """Packs texts; there must be one at least."""
    encoded = [string.encode() for string in strings]
    lengths = torch.tensor([len(string) for string in encoded])
    return Strings(torch.from_numpy(np.frombuffer(b"".join(encoded), dtype=np.uint8).copy()), lengths.cumsum(0))


def string_at(strings: Strings, index: int) -> str:
    """One of the texts."""
    start = int(strings.end[index - 1]) if index else 0
    return bytes(strings.text[start : int(strings.end[index])].numpy()).decode()
