import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snapgen_pl.conditioning.condition import Texts, labels
from snapgen_pl.data.conditions import Prompts
from snapgen_pl.data.requests import Requests
from snapgen_pl.metrics.draws import disjoint, in_order, proportional, spread, uniform


def drawn_labels(requests: Requests) -> torch.Tensor:
    return labels(requests.at(range(len(requests))).condition)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.integers(1, 200))
def test_labels_are_as_frequent_as_in_training_to_within_one(given_labels: list[int], count: int) -> None:
    drawn_N = drawn_labels(proportional(torch.tensor(given_labels), count))
    assert len(drawn_N) == count
    for label in range(7):
        drawn = int((drawn_N == label).sum())
        assert abs(drawn - given_labels.count(label) * count / len(given_labels)) < 1


def test_requests_are_the_same_each_time_and_leave_the_global_random_state_alone() -> None:
    label_N = torch.arange(10).repeat(7)
    before = torch.get_rng_state()
    first, second = proportional(label_N, 33), proportional(label_N, 33)
    assert torch.equal(drawn_labels(first), drawn_labels(second))
    assert torch.equal(torch.get_rng_state(), before)
    assert drawn_labels(first).tolist() != sorted(drawn_labels(first).tolist())
    assert first.at([4, 30]).position_B.tolist() == [4, 30]


@given(st.integers(0, 100), st.integers(0, 60), st.integers(0, 200))
def test_subsets_do_not_overlap_and_the_last_is_cut_where_images_run_out(total: int, first: int, second: int) -> None:
    a, b = disjoint(total, (first, second))
    assert len(set(a) | set(b)) == len(a) + len(b) == min(total, first + second)
    assert len(a) == min(total, first)
    assert set(a) | set(b) <= set(range(total))


def test_uniform_labels_take_every_class_alike_and_leading_parts_agree() -> None:
    drawn_N = drawn_labels(uniform(10, 20_000))
    frequency = torch.bincount(drawn_N, minlength=10) / 20_000
    assert len(frequency) == 10
    assert (frequency - 0.1).abs().max() < 0.01
    assert torch.equal(drawn_labels(uniform(10, 100)), drawn_N[:100])


def test_texts_are_asked_for_in_another_order_and_round_after_round() -> None:
    prompts = [f"text {i}" for i in range(7)]
    request = spread(Prompts(prompts), 17).at(range(17))
    assert isinstance(request.condition, Texts)
    captions = request.condition.captions
    assert sorted(captions[:7]) == sorted(captions[7:14]) == prompts
    assert list(captions[:7]) != prompts
    assert captions[14:] == captions[:3]


def test_labels_of_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="0 training images"):
        proportional(torch.tensor([], dtype=torch.int64), 5)


def test_held_out_texts_are_asked_for_in_their_order() -> None:
    request = in_order(Prompts(["a", "b", "c"]), 5).at([4, 0])
    assert isinstance(request.condition, Texts)
    assert request.condition.captions == ("b", "a")
