"""An ESTIMATE of what a phone takes, from counted work: no phone was at hand."""

from collections.abc import Sequence
from functools import cache
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from snapgen_pl.experiments import experiments_dir
from snapgen_pl.models.count import denoiser_inputs
from snapgen_pl.models.denoiser import Conditioning
from snapgen_pl.models.traffic import Operation, Traffic, traffic
from snapgen_pl.tables.declared import declared_decoder, declared_denoiser
from snapgen_pl.tables.layout import Table, number
from snapgen_pl.tables.published import LATENCIES
from snapgen_pl.tables.roofline import Roofline, fit, left_out

if TYPE_CHECKING:
    from transformers import CLIPTextConfig

LATENT_SIZE = 128  # of an image of 1024 px
CLIP_TOKENS = 77
CLIP_L, CLIP_G = (12, 768, "quick_gelu"), (32, 1280, "gelu")  # layers, width, activation, as released
TOKENS = 1 + CLIP_TOKENS  # the null token, and the two CLIPs' beside each other

NOTES = """\
ESTIMATES: nothing was timed on a phone here. Parameters are counted / published. MACs, and bytes moved in float16, are
counted at batch 1 from the denoiser of experiments/t2i with {tokens} tokens, the decoder of experiments/decoder, and
CLIP's text encoders; CLIP-G is printed as 302 M, counted is the one that was released. An operation takes the longer of
MACs / rate and bytes / bandwidth; elementwise ones are part of what makes their operands, as decided before fitting.
Least squares of the logarithm of estimate over published (iPhone 16 Pro Max, chip A18 Pro) give {rate} T MACs/s,
bandwidth {bandwidth}. *Left out* is estimated from a fit to the other three.
**The left-out errors are bad.** Two numbers are fitted to four networks two orders of magnitude apart, and bandwidth is
not determined: fits to three of them give from {low} to {high}. In the order of the rows, in percent:
- as above, {left};
- were each elementwise operation one of its own, {apart};
- by MACs alone, one number without a bandwidth, {alone};
- with a CLIP-G whose layers have the printed size (24 of width 1,024), {printed}.

Not known are what is fused and stays on the chip, what depthwise convolutions cost, how weights were stored, and
whether the networks that were timed have these shapes."""


class LatencyRow(NamedTuple):
    """A part of SnapGen on a phone; every ``estimate`` is one.

    Attributes:
        component: the part.
        params_m: millions of parameters, counted.
        params_m_published: as printed.
        gmacs: billions of multiply-accumulates of a call.
        megabytes: read and written by a call.
        milliseconds_estimate: by the chip that fits all.
        milliseconds_published: as printed.
        error_estimate: of the estimate, in percent.
        left_out_estimate: milliseconds by the chip that fits the others.
        left_out_error_estimate: of that, in percent.
        tmacs_per_s_estimate: what the chip that fits all sustains, in 10^12 multiply-accumulates a second.
        gb_per_s_estimate: its 10^9 bytes a second; None where memory is never waited for.
    """

    component: str
    params_m: float
    params_m_published: float
    gmacs: float
    megabytes: float
    milliseconds_estimate: float
    milliseconds_published: float
    error_estimate: float
    left_out_estimate: float
    left_out_error_estimate: float
    tmacs_per_s_estimate: float
    gb_per_s_estimate: float | None


class _Counted(NamedTuple):
    params: int
    traffic: Traffic


def latency() -> list[LatencyRow]:
    """Counts every part whose latency is published, and fits a chip to them."""
    networks, seconds = _operations(fused=True), _published()
    chip, others = fit(networks, seconds), left_out(networks, seconds)
    rows = []
    for told, counted, network, other in zip(LATENCIES, _parts(), networks, others, strict=True):
        here, there = 1e3 * chip.seconds(network), 1e3 * other.seconds(network)
        rows.append(
            LatencyRow(
                told.component,
                round(counted.params / 1e6, 3),
                told.params_m,
                round(sum(each.macs for each in network) / 1e9, 2),
                round(sum(each.bytes for each in network) / 1e6, 1),
                round(here, 2),
                told.milliseconds,
                _error(here, told.milliseconds),
                round(there, 2),
                _error(there, told.milliseconds),
                round(chip.rate / 1e12, 3),
                None if chip.bandwidth == inf else round(chip.bandwidth / 1e9, 1),
            )
        )
    return rows


def latency_table(reports: Path | None) -> Table:
    """Estimated and published latencies side by side.

    Raises:
        ValueError: for reports; there is nothing measured to show.
    """
    if reports is not None:
        raise ValueError("the table latency is counted, and has no place for reports; leave --reports out")
    rows = latency()
    header = (
        "component",
        "params M",
        "GMACs",
        "MB moved",
        "ESTIMATE ms",
        "published ms",
        "error",
        "left out, ESTIMATE ms",
        "left-out error",
    )
    cells = [
        (
            row.component,
            f"{row.params_m:.2f} / {row.params_m_published:g}",
            number(row.gmacs, 1),
            f"{row.megabytes:,.0f}",
            number(row.milliseconds_estimate, 1),
            number(row.milliseconds_published, 0),
            f"{row.error_estimate:+.0f} %",
            number(row.left_out_estimate, 1),
            f"{row.left_out_error_estimate:+.0f} %",
        )
        for row in rows
    ]
    return Table([row._asdict() for row in rows], header, cells, _notes())


def _notes() -> str:
    fused, seconds = _operations(fused=True), _published()
    smaller = [*fused[:-1], _clip_g(layers=24, width=1024).traffic.operations(fused=True)]
    chip, others = fit(fused, seconds), left_out(fused, seconds)
    bandwidths = sorted(each.bandwidth for each in others)
    return NOTES.format(
        tokens=TOKENS,
        rate=f"{chip.rate / 1e12:.2f}",
        bandwidth=_gigabytes(chip.bandwidth),
        low=_gigabytes(bandwidths[0]),
        high=_gigabytes(bandwidths[-1]),
        left=_errors(fused, others),
        apart=_errors(apart := _operations(fused=False), left_out(apart, seconds)),
        alone=_errors(fused, left_out(fused, seconds, memory=False)),
        printed=_errors(smaller, left_out(smaller, seconds)),
    )


def _gigabytes(bandwidth: float) -> str:
    return "endless" if bandwidth == inf else f"{bandwidth / 1e9:,.0f} GB/s"


def _errors(networks: Sequence[Sequence[Operation]], chips: Sequence[Roofline]) -> str:
    estimates = [chip.seconds(network) for chip, network in zip(chips, networks, strict=True)]
    return ", ".join(
        f"{_error(1e3 * each, told.milliseconds):+.0f}" for each, told in zip(estimates, LATENCIES, strict=True)
    )


def _error(estimate: float, published: float) -> float:
    return round(100 * (estimate / published - 1), 1)


def _published() -> list[float]:
    return [each.milliseconds / 1e3 for each in LATENCIES]


def _operations(fused: bool) -> list[list[Operation]]:
    return [part.traffic.operations(fused) for part in _parts()]


@cache
def _parts() -> tuple[_Counted, ...]:
    """In the order of what is published."""
    experiments = experiments_dir()
    denoiser = declared_denoiser(experiments / "t2i" / "kd_output.yaml")
    decoder = declared_decoder(experiments / "decoder" / "tiny.yaml")
    latent_BCHW = torch.empty(1, decoder.in_channels, LATENT_SIZE, LATENT_SIZE, device="meta")
    return (
        _counted(denoiser, *denoiser_inputs(denoiser, LATENT_SIZE, TOKENS)),
        _counted(decoder, latent_BCHW),
        _clip_l(),
        _clip_g(*CLIP_G[:2]),
    )


def clip_text_config(layers: int, width: int, activation: str) -> "CLIPTextConfig":
    """The configuration of a text encoder of CLIP's, its heads 64 wide and its projection as wide as it is."""
    from transformers import CLIPTextConfig  # takes seconds

    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        projection_dim=width,
        hidden_act=activation,
    )


def _clip_l() -> _Counted:
    from transformers import CLIPTextModel

    with torch.device("meta"):
        network = CLIPTextModel(clip_text_config(*CLIP_L))
    return _counted(network, _ids())


@cache
def _clip_g(layers: int, width: int) -> _Counted:
    from transformers import CLIPTextModelWithProjection

    with torch.device("meta"):
        network = CLIPTextModelWithProjection(clip_text_config(layers, width, "gelu"))
    return _counted(network, _ids())


def _ids() -> Tensor:
    return torch.empty(1, CLIP_TOKENS, dtype=torch.long, device="meta")


def _counted(network: nn.Module, *inputs: Tensor | Conditioning) -> _Counted:
    return _Counted(sum(each.numel() for each in network.parameters()), traffic(network, *inputs))
