"""The LightningDataModule of requests alone: there is nothing to train on."""

from abc import ABC, abstractmethod

import lightning as L

from snapgen_pl.data.loader import even_batches
from snapgen_pl.data.requests import RequestBatches, Requests


class RequestData(L.LightningDataModule, ABC):
    """What samples are asked for with, on any number of processes.

    Attributes:
        samples: how many there are to ask for.
        batch_size: samples that one process draws at once.
    """

    samples: int
    batch_size: int

    @abstractmethod
    def requests(self, count: int) -> Requests:
        """The first requests, ``count`` of them."""

    def predict_dataloader(self) -> RequestBatches:
        """This process's requests.

        Raises:
            ValueError: where there are fewer samples than processes.
        """
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if self.samples < ranks:
            raise ValueError(f"{self.samples} samples do not go round {ranks} processes; ask for more of them")
        return RequestBatches(self.requests(self.samples), even_batches(self.samples, self.batch_size, rank, ranks))

    def test_dataloader(self) -> RequestBatches:
        """One request: Lightning tests where there is a batch, and callbacks draw what they measure by themselves."""
        return RequestBatches(self.requests(1), [[0]])
