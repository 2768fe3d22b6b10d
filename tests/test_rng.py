import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snapgen_pl.rng import Stream, normal, philox, uniform

# Known answers of Philox4x32-10, published with Random123.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_known_answers(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    words = philox(tuple(torch.tensor([word]) for word in counter), key)  # type: ignore[arg-type]
    assert tuple(words[0].tolist()) == expected


@given(st.lists(st.integers(0, 2**62), min_size=2, max_size=9), st.integers(0, 2**48 - 1))
def test_a_sample_draws_the_same_whatever_batch_it_is_in(positions: list[int], seed: int) -> None:
    whole = normal(seed, Stream.NOISE, torch.tensor(positions), (3, 5))
    alone = torch.cat([normal(seed, Stream.NOISE, torch.tensor([position]), (3, 5)) for position in positions])
    assert torch.equal(whole, alone)


def test_seeds_streams_and_positions_draw_apart() -> None:
    position = torch.arange(4)
    base = uniform(1, Stream.NOISE, position, (8,))
    others = [
        uniform(2, Stream.NOISE, position, (8,)),
        uniform(1 + 2**32, Stream.NOISE, position, (8,)),
        uniform(1, Stream.TIMESTEP, position, (8,)),
        uniform(1, Stream.NOISE, position + 2**32, (8,)),
    ]
    assert all(not torch.any(base == other) for other in others)


def test_distributions_have_the_right_shape() -> None:
    position = torch.arange(4096)
    u = uniform(0, Stream.TIMESTEP, position, (32,)).double().flatten().sort().values
    n = len(u)
    # Kolmogorov-Smirnov at the 0.1 % level: 1.95 / sqrt(n).
    grid = (torch.arange(n) + 0.5) / n
    assert (u - grid).abs().max() < 1.95 / math.sqrt(n)
    z = normal(0, Stream.NOISE, position, (33,)).double().flatten().sort().values
    grid = (torch.arange(len(z)) + 0.5) / len(z)
    assert (torch.special.ndtr(z) - grid).abs().max() < 1.95 / math.sqrt(len(z))


def test_neighbouring_numbers_are_uncorrelated() -> None:
    z = normal(0, Stream.NOISE, torch.arange(20_000), (4,)).double()
    correlation = torch.corrcoef(torch.cat((z, z[:, :1].roll(1, 0)), dim=1).T)
    assert (correlation - torch.eye(5)).abs().max() < 4 / math.sqrt(20_000)


def test_the_ends_of_the_interval_never_occur(monkeypatch: pytest.MonkeyPatch) -> None:
    for word, expected in [(0, 2.0**-24), (2**32 - 1, 1 - 2.0**-24)]:
        monkeypatch.setattr("snapgen_pl.rng._words", lambda *_, word=word: torch.full((1, 1), word))
        assert uniform(0, Stream.NOISE, torch.zeros(1)).item() == expected
