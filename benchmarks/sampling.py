"""Sampling with SnapGen's UNet beside its peers: ``python -m benchmarks.sampling --json FILE``.

Whole samples, from noise to latents, under guidance: conditional and unconditional in one forward of twice the batch,
and the conditioning prepared once. On a CPU fp32 by one thread; on a GPU (``--device cuda``) bf16 autocast, eager or
compiled. A size has its networks in turn, interleaved.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from benchmarks.networks import SUBJECTS, Feed, Subject, feed, materialise
from benchmarks.timing import Environment, Timing, environment, interleave
from benchmarks.unet import check_networks, ratios
from snapgen_pl.flow.guidance import Guidance, guided_velocity
from snapgen_pl.flow.samplers import Euler
from snapgen_pl.models.denoiser import Denoiser
from snapgen_pl.models.regions import compile_regions
from snapgen_pl.whole_files import write_json

GUIDANCE = 4.0
PROTOCOL = (
    "Euler from noise to latents under guidance, conditioning prepared within; random weights, channels_last; fp32 on "
    "a CPU, bf16 autocast on a GPU; interleaved rounds after one that warms up; ratios: minimum of the peer over "
    "minimum of snapgen, of process CPU time or wall time"
)


@dataclass(frozen=True)
class Size:
    """What was found at one size of latent: seconds of a batch, by steps and network, and how peers compare."""

    timings: dict[int, dict[str, Timing]]
    ratios: dict[int, dict[str, float]]


@dataclass(frozen=True)
class Report:
    """What was found; ``sizes`` by height and width of the latent."""

    protocol: str
    environment: Environment
    batch: int
    compiled: bool
    sizes: dict[int, Size]


@torch.no_grad()
def sample(network: Denoiser, fed: Feed, steps: int) -> None:
    """Draws a batch of latents, and waits for it."""
    device = fed.x_BCHW.device
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        velocity = guided_velocity(network, fed.conditioning, fed.conditioning, Guidance(GUIDANCE))
        Euler(steps)(velocity, fed.x_BCHW, lambda step: fed.x_BCHW)
    if device.type == "cuda":
        torch.cuda.synchronize()


def run(
    subjects: Mapping[str, Subject],
    sizes: Sequence[int],
    steps: Sequence[int],
    batch: int,
    rounds: int,
    device: torch.device,
    compiled: bool,
) -> Report:
    """Times all networks.

    Args:
        subjects: by name, ``snapgen`` among them.
        sizes: heights and widths of latents.
        steps: of the sampler.
        batch: samples at once.
        rounds: timed samples of each.
        device: where.
        compiled: compiles the networks' regions.
    """
    where = environment("benchmarks.sampling", accelerator=device.type == "cuda")
    # Networks of one size are let go before those of the next are made.
    found = {size: _measured(subjects, size, steps, batch, rounds, device, compiled) for size in sizes}
    return Report(PROTOCOL, where, batch, compiled, found)


def _measured(
    subjects: Mapping[str, Subject],
    size: int,
    steps: Sequence[int],
    batch: int,
    rounds: int,
    device: torch.device,
    compiled: bool,
) -> Size:
    calls = {name: _call(subject, size, batch, device, compiled) for name, subject in subjects.items()}
    timings = {
        count: interleave({name: partial(call, steps=count) for name, call in calls.items()}, rounds) for count in steps
    }
    return Size(timings, {count: ratios("forward", each) for count, each in timings.items()})


def _call(subject: Subject, size: int, batch: int, device: torch.device, compiled: bool) -> "partial[None]":
    network = materialise(partial(subject.build, size), device).eval()
    if compiled:
        compile_regions(network)
    return partial(sample, network, feed(network, batch, size, subject.tokens, device))


def table(report: Report) -> Table:
    """Seconds, and how they compare."""
    shown = Table(title=f"samples of a batch of {report.batch} under guidance, threads: {report.environment.threads}")
    for heading in ("latent", "steps", "network", "CPU s min", "wall s min", "vs ours"):
        shown.add_column(heading, justify="left" if heading == "network" else "right")
    for size, found in report.sizes.items():
        for steps, timings in found.timings.items():
            for name, timing in timings.items():
                versus = found.ratios[steps].get(f"forward_ratio_to_{name}", 1.0)
                numbers = f"{timing.cpu_min_s:.3f}", f"{timing.wall_min_s:.3f}", f"{versus:.2f}x"
                shown.add_row(str(size), str(steps), name, *numbers)
    return shown


def main(
    json: Path | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    sizes: tuple[int, ...] = (32,),
    steps: tuple[int, ...] = (28, 8, 4),
    batch: int = 1,
    rounds: int = 2,
    compile: bool = False,  # noqa: A002 (torch's word for it)
    networks: Sequence[str] = tuple(SUBJECTS),
) -> None:
    """Times sampling with SnapGen's UNet beside its peers.

    Args:
        json: file for the record; none is written if not given.
        device: where to measure; on the CPU by one thread.
        sizes: heights and widths of latents: 32, 64 and 128 are images of 256, 512 and 1024 px.
        steps: of the sampler.
        batch: samples at once.
        rounds: timed samples of each network.
        compile: compiles the networks.
        networks: which of them, ``snapgen`` among them.
    """
    check_networks(networks, compared=True)
    if device == "cpu":
        torch.set_num_threads(1)
    subjects = {name: SUBJECTS[name] for name in networks}
    report = run(subjects, sizes, steps, batch, rounds, torch.device(device), compile)
    Console(width=120).print(table(report))
    if json is not None:
        write_json(asdict(report), json)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
