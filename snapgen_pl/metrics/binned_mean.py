"""A mean in bins of time, summed over processes."""

import torch
from torch import Tensor
from torchmetrics import Metric

from snapgen_pl.flow.timesteps import time_bin


class BinnedMean(Metric):
    """The mean of per-sample values in equal bins of t in [0, 1].

    Args:
        bins: number of bins.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins
        self.add_state("total", torch.zeros(bins, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(bins, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, t_B: Tensor, value_B: Tensor) -> None:
        """Adds one value a sample."""
        index = time_bin(t_B, self.bins)
        self.total.index_add_(0, index, value_B.to(self.total.dtype))
        self.count.index_add_(0, index, torch.ones_like(value_B, dtype=self.count.dtype))

    def compute(self) -> Tensor:
        """The mean of each bin, NaN where one is empty."""
        return self.total / self.count

    def tagged(self, prefix: str) -> dict[str, Tensor]:
        """The mean of each bin that is not empty, by the tag ``prefix/<lower edge>`` to log it under."""
        return {f"{prefix}/{i / self.bins:.1f}": mean for i, mean in enumerate(self.compute()) if mean.isfinite()}

    def mean(self) -> Tensor:
        """The mean over all values, synchronised like :meth:`compute`."""
        with self.sync_context(should_sync=self._to_sync):
            return self.total.sum() / self.count.sum()
