"""What samples are asked for with."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from snapgen_pl.conditioning.condition import Condition
from snapgen_pl.data.conditions import Conditions


class Request(NamedTuple):
    """A request for samples.

    Attributes:
        condition: labels, or texts.
        position_B: int64, what the noise is drawn from.
    """

    condition: Condition
    position_B: Tensor


class Requests:
    """What samples are asked for with, by their position.

    Args:
        conditions: to choose from.
        index_of: which of them each position asks for.
    """

    def __init__(self, conditions: Conditions, index_of: Sequence[int]) -> None:
        self.conditions, self.index_of = conditions, index_of

    def __len__(self) -> int:
        """The number of positions."""
        return len(self.index_of)

    def at(self, positions: Sequence[int]) -> Request:
        """The request for the samples at these positions."""
        indices = [self.index_of[position] for position in positions]
        return Request(self.conditions.batch(indices), torch.tensor(list(positions)))


class RequestBatches:
    """One process's requests. No DataLoader, for Lightning rebuilds those when it predicts.

    Args:
        requests: by position.
        batches: the positions of each batch.
    """

    def __init__(self, requests: Requests, batches: Sequence[Sequence[int]]) -> None:
        self.requests, self.batches = requests, batches

    def __len__(self) -> int:
        """The number of batches."""
        return len(self.batches)

    def __iter__(self) -> Iterator[Request]:
        """The requests, by position."""
        return map(self.requests.at, self.batches)
