"""The LightningDataModule of labels alone, for drawing from networks whose training images are not at hand."""

from snapgen_pl.at_least import check_at_least
from snapgen_pl.data.request_data import RequestData
from snapgen_pl.data.requests import Requests
from snapgen_pl.metrics.draws import uniform


class LabelData(RequestData):
    """Requests for samples of uniformly random classes; classes are called "0", "1", ...

    The label at a position depends on (seed, position) alone. Each process takes every world_size-th position.

    Args:
        num_classes: labels are 0 to num_classes - 1.
        samples: number of samples to ask for.
        seed: seeds the labels; in [0, 2^48).
        batch_size: samples that a process draws at once.

    Raises:
        ValueError: for values out of range.
    """

    def __init__(self, num_classes: int = 1000, samples: int = 50_000, seed: int = 0, batch_size: int = 64) -> None:
        super().__init__()
        check_at_least(1, num_classes=num_classes, samples=samples, batch_size=batch_size)
        if not 0 <= seed < 1 << 48:
            raise ValueError(f"seed must lie in [0, 2^48), got {seed}")
        self.num_classes, self.samples, self.seed, self.batch_size = num_classes, samples, seed, batch_size

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; labels index them."""
        return tuple(map(str, range(self.num_classes)))

    def requests(self, count: int) -> Requests:
        """Uniform labels."""
        return uniform(self.num_classes, count, self.seed)
