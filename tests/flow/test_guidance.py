import math
from collections.abc import Iterator

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from snapgen_pl.flow.guidance import Guidance, concatenate, guided_velocity, replace_rows
from snapgen_pl.flow.samplers import SDE, Euler, Heun, Sampler
from snapgen_pl.models.denoiser import VELOCITY, Conditioning, Denoiser, DenoiserOutput, PreparedConditioning

CHANNELS, WIDTH = 4, 6


class TinyDenoiser(Denoiser):
    """One cross-attention layer; counts what is asked of it."""

    in_channels = CHANNELS
    context_dim = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Conv2d(CHANNELS, WIDTH, 3, padding=1)
        self.key, self.value = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.time = nn.Linear(1, WIDTH)
        self.out = nn.Conv2d(WIDTH, CHANNELS, 3, padding=1)
        self.preparations = 0
        self.batches: list[int] = []

    def prepare(self, conditioning: Conditioning) -> PreparedConditioning:
        self.preparations += 1
        tokens = conditioning.tokens_BSD[:, None]
        return PreparedConditioning(
            (self.key(tokens),), (self.value(tokens),), conditioning.mask_BS, conditioning.pooled_BP
        )

    def outputs(self, x_BCHW: Tensor, t_B: Tensor, conditioning: PreparedConditioning) -> Iterator[tuple[str, Tensor]]:
        self.batches.append(len(x_BCHW))
        embedding = self.time(t_B[:, None].to(self.time.weight.dtype))
        if conditioning.embedding_BE is not None:
            embedding = embedding + conditioning.embedding_BE
        h = self.query(x_BCHW.to(self.query.weight.dtype)) + embedding[..., None, None]
        mask = None if conditioning.mask_BS is None else conditioning.mask_BS[:, None, None]
        query = h.flatten(2).transpose(1, 2)[:, None]
        h = h + nn.functional.scaled_dot_product_attention(
            query, conditioning.keys[0], conditioning.values[0], attn_mask=mask
        ).squeeze(1).transpose(1, 2).view_as(h)
        yield VELOCITY, self.out(h)


def tiny() -> TinyDenoiser:
    torch.manual_seed(0)
    return TinyDenoiser().double()


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(math.prod(shape)), dtype=torch.float64)


CONDITIONING = Conditioning(random(3, 5, WIDTH))
UNCONDITIONAL = Conditioning(random(1, 5, WIDTH).expand(3, -1, -1) * 2)
X = random(3, CHANNELS, 8, 8)


def alone(denoiser: Denoiser, conditioning: Conditioning, t: float) -> Tensor:
    output: DenoiserOutput = denoiser(X, torch.full((3,), t, dtype=torch.float64), conditioning)
    return output.velocity_BCHW


def test_scale_one_is_the_conditional_velocity_from_one_forward_of_the_batch() -> None:
    denoiser = tiny()
    out = guided_velocity(denoiser, CONDITIONING, UNCONDITIONAL, Guidance())(X, 0.3)
    assert denoiser.batches == [3]
    assert torch.equal(out, alone(denoiser, CONDITIONING, 0.3))


@pytest.mark.parametrize("scale", [0.0, 1.5, 7.0])
def test_guidance_extrapolates_from_unconditional_to_conditional(scale: float) -> None:
    denoiser = tiny()
    out = guided_velocity(denoiser, CONDITIONING, UNCONDITIONAL, Guidance(scale))(X, 0.3)
    assert denoiser.batches == [6]
    conditional, unconditional = alone(denoiser, CONDITIONING, 0.3), alone(denoiser, UNCONDITIONAL, 0.3)
    assert (conditional - unconditional).abs().max() > 0.01
    torch.testing.assert_close(out, (1 - scale) * unconditional + scale * conditional)


def test_only_the_first_channels_are_guided_where_that_is_asked() -> None:
    denoiser = tiny()
    everywhere, three = (
        guided_velocity(denoiser, CONDITIONING, UNCONDITIONAL, Guidance(4.0, channels=channels))(X, 0.3)
        for channels in (None, 3)
    )
    torch.testing.assert_close(three[:, :3], everywhere[:, :3])
    torch.testing.assert_close(three[:, 3:], alone(denoiser, CONDITIONING, 0.3)[:, 3:])


def test_outside_its_interval_guidance_neither_acts_nor_costs() -> None:
    denoiser = tiny()
    guidance = Guidance(4.0, interval=(0.2, 0.6))
    velocity = guided_velocity(denoiser, CONDITIONING, UNCONDITIONAL, guidance)
    for t in (0.1, 0.2, 0.4, 0.6, 0.7):
        velocity(X, t)
    assert denoiser.batches == [3, 6, 6, 6, 3]
    torch.testing.assert_close(velocity(X, 0.7), alone(denoiser, CONDITIONING, 0.7))


@pytest.mark.parametrize("shift", [1.0, 1.73, 3.0])
@pytest.mark.parametrize("steps", [10, 28, 50])
def test_the_ends_of_an_interval_are_in_it_whatever_rounding_made_of_a_time(steps: int, shift: float) -> None:
    times = Euler(steps, shift).times()
    for k, t in enumerate(times):
        u = (steps - k) / steps
        exact = shift * u / (1 + (shift - 1) * u)
        for interval in ((0.0, exact), (exact, 1.0)):
            guidance = Guidance(2.0, interval)
            acts = guidance.combine_at(torch.tensor([t]), torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)) == 2
            assert guidance.acts_at(t)
            assert acts.all()


@pytest.mark.parametrize("sampler", [Euler(5), Heun(5), SDE(5)], ids=repr)
def test_a_sampler_prepares_each_conditioning_once_and_forwards_once_a_call(sampler: Sampler) -> None:
    denoiser = tiny()
    velocity = guided_velocity(denoiser, CONDITIONING, UNCONDITIONAL, Guidance(2.0))
    sampler(velocity, X, lambda step: random(3, CHANNELS, 8, 8))
    assert denoiser.preparations == 2
    assert denoiser.batches == [6] * sampler.network_calls


def test_sampling_never_waits_for_the_device() -> None:
    # A meta tensor has no value: whatever would read one, and so make a GPU wait, raises.
    denoiser = tiny().to("meta")
    conditioning, unconditional = (
        Conditioning(c.tokens_BSD.to("meta"), torch.ones(3, 5, dtype=torch.bool, device="meta"))
        for c in (CONDITIONING, UNCONDITIONAL)
    )
    velocity = guided_velocity(denoiser, conditioning, unconditional, Guidance(2.0, (0.2, 0.9), channels=3))
    for sampler in (Euler(5), Heun(5), SDE(5)):
        assert sampler(velocity, X.to("meta"), lambda step: X.to("meta")).is_meta


def test_guidance_of_a_batch_acts_on_the_samples_in_its_interval() -> None:
    conditional, unconditional = random(5, CHANNELS, 8, 8), random(5, CHANNELS, 8, 8) * 2
    guidance = Guidance(3.0, interval=(0.2, 0.6), channels=3)
    t_B = torch.tensor([0.1, 0.2, 0.4, 0.6, 0.7])
    out = guidance.combine_at(t_B, conditional, unconditional)
    for t, *row in zip(t_B.tolist(), out, conditional, unconditional, strict=True):
        said, one, other = (part[None] for part in row)
        assert torch.equal(said, guidance.combine(one, other) if 0.15 < t < 0.65 else one)


def test_rows_are_replaced_in_all_that_was_prepared() -> None:
    denoiser, replaced = tiny(), torch.tensor([True, False, True])
    mask = torch.tensor([[True, True, False, True, False]] * 3)
    first = denoiser.prepare(CONDITIONING._replace(mask_BS=mask, pooled_BP=random(3, WIDTH)))
    second = denoiser.prepare(UNCONDITIONAL._replace(pooled_BP=-random(3, WIDTH)))
    out = replace_rows(first, second, replaced)
    for whole, one, other in ((out.keys[0], first.keys[0], second.keys[0]),
                              (out.values[0], first.values[0], second.values[0]),
                              (out.embedding_BE, first.embedding_BE, second.embedding_BE),
                              (out.mask_BS, first.mask_BS, torch.ones_like(mask))):  # fmt: skip
        assert whole is not None
        assert one is not None
        assert other is not None
        assert torch.equal(whole[1], one[1])
        assert torch.equal(whole[::2], other[::2])
    with pytest.raises(ValueError, match="the same number of tokens"):
        replace_rows(first, denoiser.prepare(Conditioning(random(3, 4, WIDTH), None, random(3, WIDTH))), replaced)


def test_half_precision_velocities_are_combined_in_the_type_of_the_state() -> None:
    denoiser = tiny().bfloat16()
    conditioning, unconditional = (Conditioning(c.tokens_BSD.bfloat16()) for c in (CONDITIONING, UNCONDITIONAL))
    out = guided_velocity(denoiser, conditioning, unconditional, Guidance(3.0))(X.float(), 0.5)
    assert out.dtype == torch.float32
    assert not torch.equal(out, out.bfloat16().float())


def test_a_mask_on_one_side_attends_to_everything_on_the_other() -> None:
    denoiser = tiny()
    mask = torch.tensor([[True, True, False, True, False]] * 3)
    masked = CONDITIONING._replace(mask_BS=mask)
    for conditioning, unconditional in [(masked, UNCONDITIONAL), (UNCONDITIONAL, masked)]:
        out = guided_velocity(denoiser, conditioning, unconditional, Guidance(2.0))(X, 0.5)
        expected = 2 * alone(denoiser, conditioning, 0.5) - alone(denoiser, unconditional, 0.5)
        torch.testing.assert_close(out, expected)
    both = concatenate(denoiser.prepare(masked), denoiser.prepare(masked))
    assert both.mask_BS is not None
    assert torch.equal(both.mask_BS, torch.cat((mask, mask)))


def test_pooled_vectors_are_batched_in_the_same_order() -> None:
    denoiser = tiny()
    conditioning = CONDITIONING._replace(pooled_BP=random(3, WIDTH))
    unconditional = UNCONDITIONAL._replace(pooled_BP=-random(3, WIDTH))
    out = guided_velocity(denoiser, conditioning, unconditional, Guidance(2.0))(X, 0.5)
    torch.testing.assert_close(out, 2 * alone(denoiser, conditioning, 0.5) - alone(denoiser, unconditional, 0.5))


def test_conditionings_that_do_not_fit_together_are_refused() -> None:
    denoiser = tiny()
    with pytest.raises(ValueError, match="the same number of tokens"):
        guided_velocity(denoiser, CONDITIONING, Conditioning(random(3, 4, WIDTH)), Guidance(2.0))
    with pytest.raises(ValueError, match="pooled vector"):
        guided_velocity(denoiser, CONDITIONING, UNCONDITIONAL._replace(pooled_BP=random(3, WIDTH)), Guidance(2.0))
    with pytest.raises(ValueError, match="guided channels are 5"):
        guided_velocity(denoiser, CONDITIONING, UNCONDITIONAL, Guidance(2.0, channels=5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": -1.0}, "scale is -1"),
        ({"scale": math.nan}, "scale is nan"),
        ({"interval": (0.6, 0.2)}, "interval is"),
        ({"interval": (0.0, 1.2)}, "interval is"),
        ({"channels": 0}, "channels are 0"),
    ],
)
def test_bad_guidance_is_refused_by_name(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Guidance(**arguments)  # type: ignore[arg-type]


def test_guidance_is_read_from_the_command_line() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--guidance", type=Guidance, default=Guidance())
    arguments = ["--guidance.scale=1.5", "--guidance.interval=[0.1, 0.8]", "--guidance.channels=3"]
    assert parser.instantiate(parser.parse_args(arguments)).guidance == Guidance(1.5, (0.1, 0.8), 3)
