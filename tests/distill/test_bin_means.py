from pathlib import Path

import pytest
import torch

from snapgen_pl.distill.bin_means import BinMeans

MIDDLE, NEXT = 0.53, 0.6  # in the bins [0.5, 0.5625) and [0.5625, 0.625)


def fed(means: BinMeans, t: float, value: float, samples: int) -> BinMeans:
    means.update(torch.full((samples,), t), {"kd": torch.full((samples,), value)})
    return means


def mean(means: BinMeans, t: float) -> float:
    return means.mean("kd", torch.tensor([t])).item()


def test_a_batch_is_averaged_bin_by_bin() -> None:
    means = BinMeans()
    means.update(torch.tensor([0.5, 0.56, NEXT, 1.0]), {"kd": torch.tensor([1.0, 4.0, 7.0, 8.0])})
    assert means.mean("kd", torch.tensor([MIDDLE, NEXT, 0.99])).tolist() == [2.5, 7, 8]
    assert torch.isnan(means.mean("kd", torch.tensor([0.1])))


def test_a_half_life_of_samples_halves_what_was_there() -> None:
    means = fed(fed(BinMeans(), MIDDLE, 1.0, 1024), MIDDLE, 0.0, 1024)
    assert mean(means, MIDDLE) == pytest.approx(0.5 / (0.5 + 1))
    fed(means, MIDDLE, 0.0, 512)
    # So have, by 512 samples, the square root of it.
    root = 0.5**0.5
    assert mean(means, MIDDLE) == pytest.approx(0.5 * root / (0.5 * root + root + 0.5))


def test_a_bin_forgets_by_its_own_samples_alone() -> None:
    means = fed(fed(BinMeans(), MIDDLE, 5.0, 3), NEXT, 1.0, 100_000)
    fed(means, MIDDLE, 1.0, 1)
    kept = 3 * 0.5 ** (1 / 1024)
    assert mean(means, MIDDLE) == pytest.approx((5 * kept + 1) / (kept + 1), rel=1e-6)


def test_a_value_that_is_not_finite_stays_in_its_bin() -> None:
    means = BinMeans()
    means.update(torch.tensor([MIDDLE, NEXT]), {"kd": torch.tensor([torch.inf, 2.0])})
    assert mean(means, NEXT) == 2


def test_a_checkpoint_brings_the_means_back(tmp_path: Path) -> None:
    means = fed(BinMeans(), MIDDLE, 3.0, 10)
    torch.save(means.state_dict(), tmp_path / "means.pt")
    restored = BinMeans()
    restored.load_state_dict(torch.load(tmp_path / "means.pt", weights_only=True))
    assert mean(fed(restored, MIDDLE, 1.0, 5), MIDDLE) == mean(fed(means, MIDDLE, 1.0, 5), MIDDLE)


def test_a_name_that_joins_later_has_its_own_count() -> None:
    means = fed(BinMeans(), MIDDLE, 3.0, 1000)
    means.update(torch.tensor([MIDDLE]), {"kd": torch.tensor([3.0]), "feature": torch.tensor([6.0])})
    assert mean(means, MIDDLE) == 3
    assert means.mean("feature", torch.tensor([MIDDLE])).item() == 6
