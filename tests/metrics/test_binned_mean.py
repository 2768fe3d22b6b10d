import torch

from snapgen_pl.metrics.binned_mean import BinnedMean


def test_means_are_taken_bin_by_bin_over_all_batches() -> None:
    metric = BinnedMean(4)
    metric.update(torch.tensor([0.0, 0.24, 0.25, 1.0]), torch.tensor([1.0, 3.0, 5.0, 7.0]))
    metric.update(torch.tensor([0.1]), torch.tensor([8.0]))
    assert torch.equal(metric.compute().nan_to_num(-1), torch.tensor([4.0, 5.0, -1.0, 7.0], dtype=torch.float64))
    assert metric.mean().item() == 24 / 5


def test_bins_are_tagged_by_their_lower_edges_and_empty_ones_left_out() -> None:
    metric = BinnedMean(10)
    metric.update(torch.tensor([0.0, 0.31, 0.39, 1.0]), torch.tensor([1.0, 2.0, 4.0, 5.0]))
    assert metric.tagged("val_loss_by_t") == {"val_loss_by_t/0.0": 1, "val_loss_by_t/0.3": 3, "val_loss_by_t/0.9": 5}


def test_a_reset_forgets() -> None:
    metric = BinnedMean(2)
    metric.update(torch.tensor([0.5]), torch.tensor([1.0]))
    metric.reset()
    assert metric.compute().isnan().all()
