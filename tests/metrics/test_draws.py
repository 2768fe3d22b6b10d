import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snapgen_pl.metrics.draws import disjoint, proportional, uniform


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.integers(1, 200))
def test_labels_are_as_frequent_as_in_training_to_within_one(labels: list[int], count: int) -> None:
    request = proportional(torch.tensor(labels), count)
    assert len(request.label_B) == count
    assert request.position_B.tolist() == list(range(count))
    for label in range(7):
        drawn = int((request.label_B == label).sum())
        assert abs(drawn - labels.count(label) * count / len(labels)) < 1


def test_requests_are_the_same_each_time_and_leave_the_global_random_state_alone() -> None:
    labels = torch.arange(10).repeat(7)
    before = torch.get_rng_state()
    first, second = proportional(labels, 33), proportional(labels, 33)
    assert torch.equal(first.label_B, second.label_B)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.label_B.tolist() != sorted(first.label_B.tolist())


@given(st.integers(0, 100), st.integers(0, 60), st.integers(0, 200))
def test_subsets_do_not_overlap_and_the_last_is_cut_where_images_run_out(total: int, first: int, second: int) -> None:
    a, b = disjoint(total, (first, second))
    assert len(set(a) | set(b)) == len(a) + len(b) == min(total, first + second)
    assert len(a) == min(total, first)
    assert set(a) | set(b) <= set(range(total))


def test_uniform_labels_take_every_class_alike_and_leading_parts_agree() -> None:
    request = uniform(10, 20_000)
    frequency = torch.bincount(request.label_B, minlength=10) / 20_000
    assert len(frequency) == 10
    assert (frequency - 0.1).abs().max() < 0.01
    assert torch.equal(uniform(10, 100).label_B, request.label_B[:100])


def test_labels_of_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="0 training images"):
        proportional(torch.tensor([], dtype=torch.int64), 5)
