import pytest
import torch
from torch import Tensor

from snapgen_pl.data.label_data import LabelData


def drawn(data: LabelData) -> tuple[Tensor, Tensor]:
    batches = list(data.predict_dataloader())
    return torch.cat([batch.condition for batch in batches]), torch.cat([batch.position_B for batch in batches])


def test_labels_are_uniform_and_belong_to_their_position() -> None:
    labels, positions = drawn(LabelData(10, samples=50_000))
    assert torch.equal(positions, torch.arange(50_000))
    counts = torch.bincount(labels, minlength=10)
    assert len(counts) == 10
    # Chi-squared of 9 degrees: 33.7 is exceeded once in 10,000 seeds.
    assert ((counts - 5000) ** 2 / 5000).sum() < 33.7
    few, _ = drawn(LabelData(10, samples=7, batch_size=3))
    assert torch.equal(few, labels[:7])
    assert not torch.equal(drawn(LabelData(10, samples=50_000, seed=1))[0], labels)


class Part:
    """What the data ask of a trainer."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.global_rank, self.world_size = rank, ranks


def test_processes_share_the_positions_in_as_many_batches_each() -> None:
    whole, _ = drawn(LabelData(1000, samples=23, batch_size=4))
    seen = []
    for rank in range(3):
        data = LabelData(1000, samples=23, batch_size=4)
        data.trainer = Part(rank, 3)  # type: ignore[assignment]
        assert len(data.predict_dataloader()) == 2
        labels, positions = drawn(data)
        assert torch.equal(labels, whole[positions])
        seen += positions.tolist()
    assert sorted(seen) == list(range(23))
    data = LabelData(samples=2)
    data.trainer = Part(0, 3)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="2 samples do not go round 3 processes"):
        data.predict_dataloader()


def test_classes_are_named_by_their_numbers_and_bad_values_refused() -> None:
    assert LabelData(3).classes == ("0", "1", "2")
    for options, message in (
        ({"samples": 0}, "samples must be at least 1"),
        ({"seed": 1 << 48}, "seed must lie below"),
        ({"seed": -1}, "seed must lie"),
    ):
        with pytest.raises(ValueError, match=message.split(" below")[0]):
            LabelData(**options)
