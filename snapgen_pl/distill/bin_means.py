"""Running means of losses in bins of time, the same on all processes."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from snapgen_pl.flow.timesteps import time_bin

BINS = 16
HALF_LIFE = 1024.0  # samples of a bin; decided here


class BinMeans:
    """Means of losses in 16 equal bins of t, over each bin's last samples.

    A batch that brings n samples into a bin, over all processes, multiplies the weight of those before by
    0.5 ** (n / 1024). So a bin that is seldom met remembers as many samples as any other, and a large batch forgets as
    much as the small ones that it is made of.
    """

    def __init__(self) -> None:
        # By name, (2, bins): the weighted sum of its values, and the sum of the weights.
        self._sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, t_B: Tensor, value_B: Mapping[str, Tensor]) -> None:
        """Adds a batch; where torch.distributed is initialised, all processes call it together.

        Args:
            t_B: times in [0, 1].
            value_B: losses (B,) by name, the same names on all processes.
        """
        value_RB = torch.stack([torch.ones_like(t_B, dtype=torch.float32), *value_B.values()])
        member_NB = time_bin(t_B, BINS) == torch.arange(BINS, device=t_B.device)[:, None]
        new_RN = torch.where(member_NB, value_RB[:, None], 0.0).sum(-1)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(new_RN)
        count_N = new_RN[0]
        keep_N = 0.5 ** (count_N / HALF_LIFE)
        for name, total_N in zip(value_B, new_RN[1:], strict=True):
            before = self._sums.get(name, torch.zeros(2, BINS)).to(total_N.device)
            self._sums[name] = before * keep_N + torch.stack((total_N, count_N))

    def mean(self, name: str, t_B: Tensor) -> Tensor:
        """The mean (B,) in the bin of each time; NaN where it has met no sample."""
        total_N, weight_N = self._sums[name]
        mean_B: Tensor = (total_N / weight_N)[time_bin(t_B, BINS)]
        return mean_B

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {name: sums.cpu() for name, sums in self._sums.items()}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Goes on from there."""
        self._sums = dict(state_dict)
