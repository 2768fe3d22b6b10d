"""Images that wait for others of their shape: none lost, none twice, each group of one bucket."""

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapgen_pl.data.assembler import Assembler, Assembly, Waiting
from snapgen_pl.data.buckets import Buckets
from snapgen_pl.data.tar_samples import Packed

PACKED = Packed("s.tar", "a", b"", "a caption")
ENDLESS = 1 << 40  # of patience


def assembly(group: int, patience: int = ENDLESS) -> Assembly:
    return Assembly(Buckets(64, 16, ratio=4, group=group), patience)


COUNT = len(assembly(1).buckets.sizes)
# The bucket of each image as it comes, some far rarer than others.
arrivals = st.lists(st.integers(0, COUNT - 1).map(lambda bucket: min(bucket, COUNT // 2)), max_size=120)
groups_and_patiences = st.integers(1, 5).flatmap(lambda group: st.tuples(st.just(group), st.integers(group, 40)))


def feed(to: Assembler, buckets: Sequence[int]) -> list[list[Waiting]]:
    """What leaves as images of these buckets come; their numbers count them."""
    left = []
    for bucket in buckets:
        to.add(7, to.came, PACKED, to.buckets.sizes[bucket])
        while (group := to.group()) is not None:
            to.remove(image.seat for image in group)
            left.append(group)
    return left


def numbers(images: Sequence[Waiting]) -> list[int]:
    return [image.seat.number for image in images]


@settings(max_examples=60, deadline=None)
@given(buckets=arrivals, made=groups_and_patiences)
def test_groups_are_of_one_bucket_and_nothing_is_lost_or_comes_twice(buckets: list[int], made: tuple[int, int]) -> None:
    group, _ = made
    taken = Assembler(assembly(*made))
    left = feed(taken, buckets)
    assert all(len(images) == group and len({image.seat.bucket for image in images}) == 1 for images in left)
    assert sorted(number for images in [*left, taken.waiting] for number in numbers(images)) == list(
        range(len(buckets))
    )
    assert max(Counter(image.seat.bucket for image in taken.waiting).values(), default=0) < group


@settings(max_examples=60, deadline=None)
@given(buckets=arrivals, group=st.integers(1, 5))
def test_who_has_patience_gets_the_bucket_of_each_image_in_order(buckets: list[int], group: int) -> None:
    found = {bucket: list[int]() for bucket in range(COUNT)}
    for images in feed(Assembler(assembly(group)), buckets):
        found[images[0].seat.bucket] += numbers(images)
    for bucket, given_ in found.items():
        own = [number for number, each in enumerate(buckets) if each == bucket]
        assert given_ == own[: len(own) // group * group]


@settings(max_examples=60, deadline=None)
@given(buckets=arrivals, made=groups_and_patiences, cut=st.integers(0, 120))
def test_what_waits_and_a_count_say_all_that_comes_after(buckets: list[int], made: tuple[int, int], cut: int) -> None:
    straight, before = Assembler(assembly(*made)), Assembler(assembly(*made))
    expected, first = feed(straight, buckets), feed(before, buckets[:cut])
    after = Assembler(assembly(*made), before.came, before.waiting)
    assert [*first, *feed(after, buckets[cut:])] == expected
    assert after.waiting == straight.waiting


@settings(max_examples=60, deadline=None)
@given(buckets=arrivals, made=groups_and_patiences)
def test_only_who_is_alone_waits_longer_than_the_patience(buckets: list[int], made: tuple[int, int]) -> None:
    taken = Assembler(assembly(*made))
    feed(taken, buckets)
    late = [image for image in taken.waiting if taken.came - image.seat.since > made[1]]
    assert not late or len({image.seat.bucket for image in taken.waiting}) == 1


def test_a_rare_shape_joins_the_nearest_that_waits_and_waits_anew() -> None:
    taken = Assembler(assembly(3, patience=4))
    # The widest; then squares, of which three leave; then the one that is nearly square, which is nearer than the tall.
    square = COUNT // 2
    left = feed(taken, [0, square, square, square, square + 1])
    assert [numbers(images) for images in left] == [[1, 2, 3]]
    assert [(image.seat.number, image.seat.bucket, image.seat.since) for image in taken.waiting] == [
        (0, 0, 1),
        (4, square + 1, 5),
    ]
    left = feed(taken, [COUNT - 1])  # the sixth, when the first has seen five more
    assert left == []
    assert [(image.seat.number, image.seat.bucket, image.seat.since) for image in taken.waiting] == [
        (4, square + 1, 5),
        (0, square + 1, 6),
        (5, COUNT - 1, 6),
    ]


def test_images_at_fault_leave_alone() -> None:
    taken = Assembler(assembly(3))
    for number in range(3):
        taken.add(7, number, PACKED, taken.buckets.sizes[0])
    group = taken.group()
    assert group is not None
    taken.remove([group[1].seat])
    assert taken.group() is None
    assert numbers(taken.waiting) == [0, 2]


def test_a_patience_that_no_group_survives_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.patience is 7, but 8 images make a group"):
        assembly(8, 7)
