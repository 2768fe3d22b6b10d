import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapgen_pl.data.buckets import Buckets, Size

LARGE = Buckets(1024)

buckets = st.builds(
    lambda step, count, ratio: Buckets(step * count, step, ratio),
    step=st.sampled_from([1, 8, 32, 64]),
    count=st.integers(1, 40),
    ratio=st.floats(1, 4),
)


@given(buckets)
def test_sizes_are_multiples_of_one_area_within_the_ratio_both_ways_round(given: Buckets) -> None:
    assert Size(given.image_size, given.image_size) in given.sizes
    assert len(set(given.sizes)) == len(given.sizes)
    assert list(given.sizes) == sorted(given.sizes, key=lambda size: size.height / size.width)
    for size in given.sizes:
        assert Size(size.width, size.height) in given.sizes
        assert size.height % given.step == size.width % given.step == 0
        assert max(size) <= given.ratio * min(size)
        # Half a step of the side that was chosen, which is the shorter one at the worst; a logarithm counts it so.
        assert abs(math.log(size.height * size.width / given.image_size**2)) <= math.log1p(given.step / min(size))


@given(buckets, st.integers(1, 5000), st.integers(1, 5000))
def test_an_image_takes_the_nearest_shape_and_turned_the_turned_one(given: Buckets, height: int, width: int) -> None:
    size, turned = (given.sizes[given.index(each)] for each in (Size(height, width), Size(width, height)))
    distances = [abs(math.log(height / width) - math.log(each.height / each.width)) for each in given.sizes]
    assert distances[given.index(Size(height, width))] == min(distances)
    if sum(distance - min(distances) < 1e-9 for distance in distances) == 1:
        assert turned == Size(size.width, size.height)


def test_the_sizes_of_the_largest_stage() -> None:
    """A golden value: a run must resume under another release, too."""
    wide = [(768, 1408), (768, 1344), (832, 1280), (832, 1216), (896, 1152), (960, 1088)]
    assert list(LARGE.sizes) == [*wide, (1024, 1024), *((width, height) for height, width in reversed(wide))]
    assert max(abs(size.height * size.width / 1024**2 - 1) for size in LARGE.sizes) < 0.04


@pytest.mark.parametrize(
    ("image", "size"),
    [((600, 600), (1024, 1024)), ((1080, 1920), (768, 1344)), ((3000, 2000), (1280, 832)), ((100, 2000), (768, 1408))],
)
def test_common_shapes_take_what_one_expects(image: tuple[int, int], size: tuple[int, int]) -> None:
    assert LARGE.sizes[LARGE.index(Size(*image))] == size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 1000}, r"image_size is 1000, buckets\.step 64; the step must divide the size"),
        ({"step": 0}, r"buckets\.step 0"),
        ({"ratio": 0.5}, r"buckets\.ratio is 0\.5"),
        ({"ratio": math.nan}, r"buckets\.ratio is nan"),
        ({"group": 0}, r"buckets\.group is 0"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Buckets(**({"image_size": 1024} | options))  # type: ignore[arg-type]
