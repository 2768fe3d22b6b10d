from math import inf

import numpy as np
import pytest

from snapgen_pl.models.traffic import Operation
from snapgen_pl.tables.roofline import Roofline, fit, left_out


def network(seed: int, scale: float) -> list[Operation]:
    """Operations on both sides of a chip's balance."""
    rng = np.random.default_rng(seed)
    macs, moved = scale * 10 ** rng.uniform(6, 9, 50), scale * 10 ** rng.uniform(4, 7, 50)
    return [Operation("an operator", int(a), int(b)) for a, b in zip(macs, moved, strict=True)]


NETWORKS = [network(seed, scale) for seed, scale in enumerate((1, 0.3, 20, 5))]


def test_an_operation_takes_the_longer_of_its_two_times() -> None:
    chip = Roofline(rate=100.0, bandwidth=10.0)
    assert chip.seconds([Operation("a", 300, 10), Operation("b", 100, 50)]) == pytest.approx(3 + 5)
    assert chip._replace(bandwidth=inf).seconds([Operation("a", 300, 10), Operation("b", 0, 50)]) == pytest.approx(3)


def test_a_faster_chip_takes_less_and_more_work_takes_more() -> None:
    chip = Roofline(2e12, 2e10)
    time = chip.seconds(NETWORKS[0])
    assert chip._replace(rate=4e12).seconds(NETWORKS[0]) < time
    assert chip._replace(bandwidth=4e10).seconds(NETWORKS[0]) < time
    assert chip.seconds([*NETWORKS[0], Operation("more", 1, 1)]) > time


@pytest.mark.parametrize("bandwidth", [3e9, 2e10, 4e11])
def test_the_chip_that_made_the_times_is_found(bandwidth: float) -> None:
    chip = Roofline(2e12, bandwidth)
    seconds = [chip.seconds(each) for each in NETWORKS]
    for found in (fit(NETWORKS, seconds), *left_out(NETWORKS, seconds)):
        assert found.rate == pytest.approx(chip.rate, rel=1e-3)
        assert found.bandwidth == pytest.approx(chip.bandwidth, rel=1e-3)


def test_no_other_chip_near_is_better() -> None:
    seconds = [0.02, 0.001, 0.3, 0.2]

    def misfit(chip: Roofline) -> float:
        return sum(np.log(chip.seconds(each) / time) ** 2 for each, time in zip(NETWORKS, seconds, strict=True))

    best = fit(NETWORKS, seconds)
    for rate, bandwidth in ((0.99, 1), (1.01, 1), (1, 0.99), (1, 1.01)):
        assert misfit(best) <= misfit(Roofline(rate * best.rate, bandwidth * best.bandwidth)) + 1e-12


def test_times_of_macs_alone_leave_the_bandwidth_endless() -> None:
    seconds = [sum(each.macs for each in one) / 2e12 for one in NETWORKS]
    assert fit(NETWORKS, seconds, memory=False) == (pytest.approx(2e12), inf)
    assert fit(NETWORKS, seconds).seconds(NETWORKS[0]) == pytest.approx(seconds[0])


def test_one_left_out_does_not_tell_of_itself() -> None:
    seconds = [0.02, 0.001, 0.3, 0.2]
    assert left_out(NETWORKS, seconds)[3] == left_out(NETWORKS, [*seconds[:3], 77.0])[3]
    assert left_out(NETWORKS, seconds)[0] != left_out(NETWORKS, [*seconds[:3], 77.0])[0]


def test_too_few_times_are_refused() -> None:
    with pytest.raises(ValueError, match="1 networks and 1 times do not determine 2 numbers"):
        fit(NETWORKS[:1], [1.0])
    with pytest.raises(ValueError, match="needs multiply-accumulates and bytes"):
        fit([NETWORKS[0], [Operation("a", 0, 1)]], [1.0, 1.0])
