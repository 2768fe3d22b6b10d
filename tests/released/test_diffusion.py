"""The samplers against diffusers' schedulers, given the same network and the same noise."""

from dataclasses import replace

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from snapgen_pl.flow.guidance import Guidance
from snapgen_pl.released.diffusion import DDIM, DDPM, guided_noise

SHAPE = (2, 3, 4, 4)


def noise_of(generator: torch.Generator) -> Tensor:
    return torch.randn(SHAPE, generator=generator)


def network(x: Tensor, k: int) -> Tensor:
    """Something that depends on all it is told: noise and, in the other half, variances between -1 and 1."""
    return torch.cat((torch.sin(x + k / 300), torch.tanh(x - k / 500)), dim=1)


@pytest.mark.parametrize("steps", [2, 7, 250])
def test_ddpm_with_learned_variances_is_diffusers(steps: int) -> None:
    scheduler = DDPMScheduler(variance_type="learned_range", timestep_spacing="linspace", clip_sample=False)
    scheduler.set_timesteps(steps)
    start = noise_of(torch.Generator().manual_seed(1))
    ours, theirs = torch.Generator().manual_seed(2), torch.Generator().manual_seed(2)
    expected = start
    for k in scheduler.timesteps:
        expected = scheduler.step(network(expected, int(k)), k, expected, generator=theirs).prev_sample
    drawn = DDPM(steps)(network, start, lambda step: noise_of(ours))
    torch.testing.assert_close(drawn, expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("steps", [2, 10, 250])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_diffusers(steps: int, eta: float) -> None:
    scheduler = DDIMScheduler(
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    scheduler.set_timesteps(steps)
    start = noise_of(torch.Generator().manual_seed(1))
    ours, theirs = torch.Generator().manual_seed(2), torch.Generator().manual_seed(2)
    expected = start
    for k in scheduler.timesteps:
        predicted = network(expected, int(k))[:, :3]
        expected = scheduler.step(predicted, k, expected, eta=eta, generator=theirs).prev_sample
    drawn = DDIM(steps, eta)(lambda x, k: network(x, k)[:, :3], start, lambda step: noise_of(ours))
    torch.testing.assert_close(drawn, expected, atol=2e-3, rtol=2e-3)


def test_each_step_asks_for_its_own_noise_and_the_last_of_ddpm_for_none() -> None:
    for sampler, asked in ((DDPM(5), [0, 1, 2, 3]), (DDIM(5), [0, 1, 2, 3, 4]), (DDIM(5, eta=0.0), [])):
        seen: list[int] = []

        def draw(step: int, seen: list[int] = seen) -> Tensor:
            seen.append(step)
            return torch.zeros(SHAPE)

        channels = 6 if isinstance(sampler, DDPM) else 3
        sampler(lambda x, k, channels=channels: network(x, k)[:, :channels], torch.ones(SHAPE), draw)
        assert seen == asked
        assert len(sampler.stops()) == sampler.network_calls == 5


def test_guidance_moves_noise_in_its_channels_and_interval_and_no_variances() -> None:
    def labelled(x: Tensor, k: int, label_B: Tensor) -> Tensor:
        seen.append(len(x))
        return label_B[:, None, None, None].float().expand(-1, 6, 4, 4)

    seen: list[int] = []
    x, label_B = torch.zeros(SHAPE), torch.tensor([1, 2])
    guidance = Guidance(3.0, interval=(0.2, 0.8), channels=2)
    noise = guided_noise(labelled, label_B, 4, guidance)
    guided = noise(x, 500)
    expected = torch.tensor([4 + 3 * (1 - 4), 4 + 3 * (2 - 4)]).float()
    assert torch.equal(guided[:, :2], expected[:, None, None, None].expand(-1, 2, 4, 4))
    assert torch.equal(guided[:, 2:], labelled(x, 0, label_B)[:, 2:])
    seen.clear()
    assert torch.equal(noise(x, 900), labelled(x, 0, label_B))
    assert torch.equal(guided_noise(labelled, label_B, 4, replace(guidance, scale=1.0))(x, 500), noise(x, 900))
    assert set(seen) == {2}


def test_what_a_sampler_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="predicts 3 channels for latents of 3"):
        DDPM(5)(lambda x, k: x, torch.ones(SHAPE), lambda step: torch.zeros(SHAPE))
    with pytest.raises(ValueError, match="steps is 300; it must divide 1000"):
        DDIM(300)
    with pytest.raises(ValueError, match="eta is 2"):
        DDIM(250, eta=2)
    with pytest.raises(ValueError, match="steps is 1; it must be 2 to 1000"):
        DDPM(1)
