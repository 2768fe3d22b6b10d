"""SnapGen's decoder beside SD3's and the tiny autoencoder's: ``python -m benchmarks.decoder --json FILE``.

On the CPU: fp32, channels_last, one thread, interleaved rounds. 256 px take a minute, 1024 px a quarter of an hour.
SD3's decoder would need more than 12 GB at 2048 px: ``--largest`` says how far each decoder goes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.memory import peak_bytes
from benchmarks.timing import Environment, Timing, environment, interleave
from benchmarks.unet import OURS, ratios
from snapgen_pl.models.count import Cost, count_module
from snapgen_pl.models.decoder import Decoder
from snapgen_pl.models.pieces import decode_in_pieces
from snapgen_pl.whole_files import write_json

CHANNELS, PIXELS = 16, 8  # of a latent, and along a side of its positions
MIB = 2**20
LARGEST = {"snapgen_whole": 1024, "sd3": 1024}  # pixels; those not named go as far as asked
PROTOCOL = (
    "fp32, channels_last, eager, random weights, one image, no gradients; snapgen: in pieces, snapgen_whole: one call "
    "of the same network; peak: resident memory of a call over what was held before; then interleaved rounds; "
    "ratios: minimum of the peer over minimum of snapgen, of process CPU time or wall time"
)

Decode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Subject:
    """A decoder under test.

    Attributes:
        network: what is counted.
        decode: how it is called.
    """

    network: nn.Module
    decode: Decode


@dataclass(frozen=True)
class Size:
    """What was found at one size of image.

    Attributes:
        costs: parameters and multiply-accumulates, by decoder.
        peak_mib: the most memory of a call, weights aside, by decoder; None where the system does not say.
        timings: by decoder.
        ratios: time of a peer over ours, from minima; above 1 ours is faster.
    """

    costs: dict[str, dict[str, int]]
    peak_mib: dict[str, float | None]
    timings: dict[str, Timing]
    ratios: dict[str, float]


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        protocol: what was timed.
        environment: where.
        sizes: by the image's height and width in pixels.
    """

    protocol: str
    environment: Environment
    sizes: dict[int, Size]


def subjects() -> dict[str, Subject]:
    """The reference, in pieces and whole, and diffusers' decoders for latents of 16 channels."""
    from diffusers.models.autoencoders.vae import Decoder as KLDecoder

    from snapgen_pl.models.taesd import TAESDDecoder

    ours = Decoder().eval()
    widths = (128, 256, 512, 512)
    blocks = ("UpDecoderBlock2D",) * len(widths)
    sd3 = KLDecoder(CHANNELS, 3, up_block_types=blocks, block_out_channels=widths, layers_per_block=2)
    sd3.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from the stubs
    taesd = TAESDDecoder(CHANNELS).eval()
    return {
        OURS: Subject(ours, partial(decode_in_pieces, ours)),
        "snapgen_whole": Subject(ours, ours),
        "taesd": Subject(taesd, taesd),
        "sd3": Subject(sd3, sd3),
    }


def run(compared: Mapping[str, Subject], sizes: Sequence[int], rounds: int, largest: Mapping[str, int]) -> Report:
    """Measures the decoders at each size.

    Args:
        compared: decoders by name, ``snapgen`` among them.
        sizes: height and width of images in pixels, multiples of 8 from 16 on.
        rounds: timed calls of each.
        largest: sizes beyond which peers are left out, by name.

    Raises:
        ValueError: for another size, or a largest one of what is no peer.
    """
    if unknown := sorted(set(largest) - (set(compared) - {OURS})):
        peers = ", ".join(name for name in compared if name != OURS)
        raise ValueError(f"largest names {', '.join(unknown)}; the peers are {peers}")
    if strangers := [size for size in sizes if size < 2 * PIXELS or size % PIXELS]:
        raise ValueError(f"sizes {strangers}: need multiples of {PIXELS} from {2 * PIXELS} on")
    where = environment("benchmarks.decoder")

    def at(size: int) -> Size:
        taking_part = {name: each for name, each in compared.items() if size <= largest.get(name, size)}
        return _at_size(taking_part, size, rounds)

    return Report(PROTOCOL, where, {size: at(size) for size in sizes})


def _at_size(compared: Mapping[str, Subject], size: int, rounds: int) -> Size:
    side = size // PIXELS
    raw_BCHW = torch.randn(1, CHANNELS, side, side, generator=torch.Generator().manual_seed(0))
    raw_BCHW = raw_BCHW.contiguous(memory_format=torch.channels_last)
    calls = {name: partial(subject.decode, raw_BCHW) for name, subject in compared.items()}
    with torch.no_grad():
        for subject in compared.values():
            subject.decode(raw_BCHW[:, :, :2, :2])  # libraries load before memory is looked at
        peaks = {name: peak_bytes(call) for name, call in calls.items()}
        timings = interleave(calls, rounds, warmups=0)  # those calls have warmed up
    costs: dict[str, Cost] = {
        name: count_module(subject.network, raw_BCHW, convention="decoder") for name, subject in compared.items()
    }
    return Size(
        costs={name: cost._asdict() for name, cost in costs.items()},
        peak_mib={name: None if peak is None else peak / MIB for name, peak in peaks.items()},
        timings=timings,
        ratios=ratios("forward", timings),
    )


def table(report: Report) -> Table:
    """Times and memory, and how they compare."""
    shown = Table(title=f"one image, fp32, threads: {report.environment.threads}")
    for heading in ("px", "decoder", "params M", "GMACs", "CPU s min", "wall s min", "vs ours", "peak MiB"):
        shown.add_column(heading, justify="left" if heading == "decoder" else "right")
    for size, found in report.sizes.items():
        for name, timing in found.timings.items():
            cost, peak = Cost(**found.costs[name]), found.peak_mib[name]
            versus = found.ratios.get(f"forward_ratio_to_{name}", 1.0)
            numbers = f"{cost.params_m:.2f}", f"{cost.gmacs:.1f}", f"{timing.cpu_min_s:.3f}", f"{timing.wall_min_s:.3f}"
            shown.add_row(str(size), name, *numbers, f"{versus:.2f}x", "-" if peak is None else f"{peak:.0f}")
    return shown


def main(
    json: Path | None = None,
    sizes: tuple[int, ...] = (256, 512, 1024),
    rounds: int = 3,
    threads: int = 1,
    largest: dict[str, int] = LARGEST,
) -> None:
    """Times SnapGen's decoder beside SD3's and the tiny autoencoder's.

    Args:
        json: file for the record; none is written if not given.
        sizes: height and width of images in pixels.
        rounds: timed calls of each decoder.
        threads: threads on the CPU.
        largest: sizes beyond which peers are left out, by name: they need much memory and time.
    """
    torch.set_num_threads(threads)
    report = run(subjects(), sizes, rounds, largest)
    Console(width=120).print(table(report))
    if json is not None:
        write_json(asdict(report), json)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
