import math

import torch

from snapgen_pl.flow.noise import initial_noise, step_noise

SHAPE = (2, 8, 8)


def test_a_samples_noise_is_its_own_in_any_batch() -> None:
    position = torch.tensor([3, 2**40 - 1, 7])
    for step in (0, 249):
        whole = step_noise(5, position, SHAPE)(step)
        alone = torch.cat([step_noise(5, one, SHAPE)(step) for one in position[:, None]])
        assert whole.shape == (3, *SHAPE)
        assert torch.equal(whole, alone)
        assert torch.equal(whole, step_noise(5, position, SHAPE)(step))


def test_the_start_the_steps_the_samples_and_the_seeds_are_all_uncorrelated() -> None:
    position = torch.tensor([0, 1, 2, 8, 16, 1 << 20, 1 << 39, (1 << 40) - 1])
    draws = [initial_noise(0, position, SHAPE), initial_noise(1, position, SHAPE)]
    draws += [step_noise(0, position, SHAPE)(step) for step in range(20)]
    rows = torch.cat(draws).flatten(1).double()
    correlation = torch.corrcoef(rows) - torch.eye(len(rows))
    # 15,400 pairs: their largest |correlation| is near 4.2 standard errors, and 1 where two rows coincide.
    assert correlation.abs().max() < 6 / math.sqrt(rows.shape[1])
