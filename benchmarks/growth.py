"""How cost grows with latents and batches: ``python -m benchmarks.growth --json FILE``.

One prediction of SnapGen's UNet and of DiT-XL/2 on a CPU, fp32, one thread: time, and the most memory that it holds
over the weights, against the latent's side and against the batch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from benchmarks.memory import peak_bytes
from benchmarks.networks import SUBJECTS, Subject, feed, forward, materialise
from benchmarks.timing import Environment, environment, measure
from benchmarks.unet import check_networks
from snapgen_pl.whole_files import write_json

PROTOCOL = (
    "fp32, channels_last, eager, one thread, a prediction without gradients; seconds: least process CPU time of the "
    "rounds after one call that warms up and whose peak of resident memory, over what was held before, is told; "
    "exponent: slope of the last two points in logarithms, of time, memory and counted multiply-accumulates"
)


class Point(NamedTuple):
    """One prediction: at which latent's side and batch, its seconds, its memory, what it counts."""

    size: int
    batch: int
    seconds: float
    peak_mib: float | None
    gmacs: float


@dataclass(frozen=True)
class Growth:
    """One network's cost.

    Attributes:
        points: what was measured.
        exponents: of seconds, MiB and GMACs, as powers of what grew.
    """

    points: list[Point]
    exponents: dict[str, float]


@dataclass(frozen=True)
class Report:
    """What was found: growth with the latent's side and with the batch, by network."""

    protocol: str
    environment: Environment
    by_size: dict[str, Growth]
    by_batch: dict[str, Growth]


def exponent(grown: Sequence[float], cost: Sequence[float]) -> float:
    """The power by which a cost grew at last: 2 where it quadruples as the other doubles."""
    return math.log(cost[-1] / cost[-2]) / math.log(grown[-1] / grown[-2])


def point(subject: Subject, size: int, batch: int, rounds: int) -> Point:
    """Measures one prediction.

    Args:
        subject: the network.
        size: height and width of the latent.
        batch: latents at once.
        rounds: timed calls.
    """
    cpu = torch.device("cpu")
    network = materialise(partial(subject.build, size), cpu)
    call = partial(forward, network, feed(network, batch, size, subject.tokens, cpu))
    peak = peak_bytes(call)
    seconds = min(measure(call).cpu_s for _ in range(rounds))
    gmacs = batch * subject.cost(size).gmacs
    return Point(size, batch, seconds, None if peak is None else peak / 2**20, gmacs)


def growth(points: list[Point], grown: Sequence[float]) -> Growth:
    """Points, and how their costs grew."""
    costs = {"seconds": [each.seconds for each in points], "gmacs": [each.gmacs for each in points]}
    if all(each.peak_mib for each in points):
        costs["peak_mib"] = [each.peak_mib or math.nan for each in points]
    return Growth(points, {name: exponent(grown, values) for name, values in costs.items()})


def run(subjects: Mapping[str, Subject], sizes: Sequence[int], batches: Sequence[int], rounds: int) -> Report:
    """Measures growth with the latent's side at batch 1, and with the batch at the first side.

    Args:
        subjects: networks by name.
        sizes: at least two sides, rising.
        batches: at least two batches, rising.
        rounds: timed calls of each.
    """
    where = environment("benchmarks.growth")
    by_size, by_batch = {}, {}
    for name, subject in subjects.items():
        point(subject, sizes[0], 1, rounds=1)  # the process' first call also holds what torch sets up once
        by_size[name] = growth([point(subject, size, 1, rounds) for size in sizes], sizes)
        by_batch[name] = growth([point(subject, sizes[0], batch, rounds) for batch in batches], batches)
    return Report(PROTOCOL, where, by_size, by_batch)


def table(report: Report) -> Table:
    """Points, and the exponents behind the last of each."""
    shown = Table(title="a prediction, fp32, one thread")
    for heading in ("network", "latent", "batch", "CPU s", "peak MiB", "GMACs", "exponents: s, MiB, GMACs"):
        shown.add_column(heading, justify="left" if heading == "network" else "right")
    for grown in (report.by_size, report.by_batch):
        for name, each in grown.items():
            last = ", ".join(f"{each.exponents.get(key, math.nan):.2f}" for key in ("seconds", "peak_mib", "gmacs"))
            for found in each.points:
                peak = "-" if found.peak_mib is None else f"{found.peak_mib:.0f}"
                powers = last if found is each.points[-1] else ""
                numbers = f"{found.seconds:.3f}", peak, f"{found.gmacs:.1f}"
                shown.add_row(name, str(found.size), str(found.batch), *numbers, powers)
    return shown


def main(
    json: Path | None = None,
    sizes: tuple[int, ...] = (32, 64, 128, 256),
    batches: tuple[int, ...] = (1, 2, 4, 8),
    rounds: int = 2,
    networks: Sequence[str] = ("snapgen", "dit_xl_2"),
) -> None:
    """Measures how cost grows with latents and batches.

    Args:
        json: file for the record; none is written if not given.
        sizes: sides of latents, rising; DiT takes ten minutes a call at 256.
        batches: of the first side, rising.
        rounds: timed calls of each.
        networks: which of them.

    Raises:
        ValueError: for too few or falling sizes or batches.
    """
    check_networks(networks, compared=False)
    for name, grown in (("sizes", sizes), ("batches", batches)):
        if len(grown) < 2 or min(np.diff(grown)) <= 0 or grown[0] < 1:
            raise ValueError(f"{name} are {list(grown)}; growth is seen between two or more that rise from 1 or more")
    torch.set_num_threads(1)
    report = run({name: SUBJECTS[name] for name in networks}, sizes, batches, rounds)
    Console(width=120).print(table(report))
    if json is not None:
        write_json(asdict(report), json)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
