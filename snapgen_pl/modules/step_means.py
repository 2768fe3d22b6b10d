"""What a step is logged as: means over all that it was taken on."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor


class StepMeans:
    """Means of scalars over the batches of an optimizer's step, those of all processes."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Takes in what a batch says.

        Args:
            values: scalars by name, of the same names on all processes.
        """
        for name, value in values.items():
            self._values.setdefault(name, []).append(value.detach().float())

    def take(self) -> dict[str, Tensor]:
        """The means by name, on their device, and forgets all; where there are several processes, all call it."""
        if not self._values:
            return {}
        means = torch.stack([torch.stack(values).mean() for values in self._values.values()])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(means)
            means /= dist.get_world_size()
        names, self._values = list(self._values), {}
        return dict(zip(names, means.unbind(), strict=True))
