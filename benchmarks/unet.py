"""SnapGen's UNet beside DiT-XL/2 and the thin SDXL baseline: ``python -m benchmarks.unet --json FILE``.

On a CPU: fp32, channels_last, one thread, interleaved rounds, in about a minute; ``--training_rounds 2`` adds training
steps of the bare networks; ``python -m benchmarks.training`` has whole steps of every stage. On a GPU (``--device
cuda``): bf16 autocast, compiled, as CUDA graphs, and eager, for any ``--batches``.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from benchmarks.cuda import CUDAReport, Mode, Task, check_sweep, cuda_table, network_throughput
from benchmarks.networks import SUBJECTS, Subject, feed, forward, forward_backward, materialise, recorded
from benchmarks.timing import Environment, Timing, environment, interleave
from snapgen_pl.models.count import Cost
from snapgen_pl.models.denoiser import Denoiser
from snapgen_pl.whole_files import write_json

OURS = "snapgen"


@dataclass(frozen=True)
class CPUReport:
    """What a run on the CPU found.

    Attributes:
        protocol: what was timed.
        environment: where.
        batch: images a pass.
        size: height and width of the latent.
        costs: parameters and multiply-accumulates of one image, by network.
        forward: timings of one prediction, by network.
        training: timings of forward, loss and backward, by network.
        ratios: time of a peer over ours, from minima; above 1 ours is faster.
    """

    protocol: str
    environment: Environment
    batch: int
    size: int
    costs: dict[str, Cost]
    forward: dict[str, Timing]
    training: dict[str, Timing]
    ratios: dict[str, float]

    def record(self) -> dict[str, object]:
        """For JSON."""
        return ratios_first(asdict(self), self.costs)


def ratios_first(fields: dict[str, Any], costs: Mapping[str, Cost]) -> dict[str, object]:
    """A report's fields for JSON: the ratios at the top, where a reader and a gate find them."""
    found: dict[str, object] = fields.pop("ratios")
    return found | fields | {"costs": recorded(costs)}


def ratios(task: str, timings: Mapping[str, Timing]) -> dict[str, float]:
    """Time of each peer over ours, by the minima of CPU and wall time."""
    ours = timings[OURS]
    peers = {name: timing for name, timing in timings.items() if name != OURS}
    cpu = {f"{task}_ratio_to_{name}": timing.cpu_min_s / ours.cpu_min_s for name, timing in peers.items()}
    wall = {f"{task}_wall_ratio_to_{name}": timing.wall_min_s / ours.wall_min_s for name, timing in peers.items()}
    return cpu | wall


def run_cpu(subjects: Mapping[str, Subject], batch: int, size: int, rounds: int, training_rounds: int) -> CPUReport:
    """Times predictions, then training steps, of all networks in turn.

    Args:
        subjects: networks by name, ``snapgen`` among them.
        batch: images a pass.
        size: height and width of the latent.
        rounds: timed predictions of each network.
        training_rounds: timed training steps of each network; 0 leaves them out.
    """
    where, device = environment("benchmarks.unet"), torch.device("cpu")
    networks = {name: materialise(partial(subject.build, size), device) for name, subject in subjects.items()}
    feeds = {name: feed(networks[name], batch, size, subject.tokens, device) for name, subject in subjects.items()}

    def training_step(network: Denoiser, name: str) -> None:
        forward_backward(network, feeds[name])
        network.zero_grad(set_to_none=True)  # one network's gradients at a time

    predictions = {name: partial(forward, network, feeds[name]) for name, network in networks.items()}
    steps = {name: partial(training_step, network, name) for name, network in networks.items()}
    forward_timings = interleave(predictions, rounds)
    # Weights and kernels are warm by now.
    training_timings = interleave(steps, training_rounds, warmups=0) if training_rounds else {}
    return CPUReport(
        protocol="fp32, channels_last, eager; forward: one prediction without gradients, conditioning included; "
        "training: forward, loss and backward, no optimizer; interleaved rounds, one warm-up prediction each; "
        "ratios: minimum of the peer over minimum of snapgen, of process CPU time or wall time",
        environment=where,
        batch=batch,
        size=size,
        costs={name: subject.cost(size) for name, subject in subjects.items()},
        forward=forward_timings,
        training=training_timings,
        ratios=ratios("forward", forward_timings) | (ratios("training", training_timings) if training_rounds else {}),
    )


def run_cuda(
    subjects: Mapping[str, Subject],
    batches: Sequence[int],
    modes: Sequence[Mode],
    size: int,
    rounds: int,
    training_rounds: int,
) -> Iterator[CUDAReport]:
    """Measures each network alone: batch by batch, mode by mode, training before forward.

    Args:
        subjects: networks by name.
        batches: images a step.
        modes: how steps run.
        size: height and width of the latent.
        rounds: timed predictions.
        training_rounds: timed training steps.
    """
    steps: dict[Task, int] = {"training": training_rounds, "forward": rounds}
    report = CUDAReport(
        protocol="bf16 autocast over fp32 weights, channels_last; forward: predictions without gradients, conditioning "
        "included; training: forward, loss, backward and fused AdamW; median over steps by device events; graphed: "
        "compiled, and the step captured as one CUDA graph; MFU: 2 (forward) or 6 (training) FLOPs a "
        "multiply-accumulate over the device's dense bf16 peak",
        environment=environment("benchmarks.unet", accelerator=True),
        size=size,
        costs={name: subject.cost(size) for name, subject in subjects.items()},
        rows={name: [] for name in subjects},
    )
    return report.filled(
        (name, partial(network_throughput, subject, task, mode, batch, size, count))
        for batch, mode, (task, count), (name, subject) in product(batches, modes, steps.items(), subjects.items())
    )


def check_networks(names: Sequence[str], compared: bool, known: Mapping[str, Subject] = SUBJECTS) -> None:
    """Raises ValueError for a network that there is none of, or where peers would be compared with nothing."""
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no networks {unknown}; there are {', '.join(known)}")
    if compared and OURS not in names:
        raise ValueError(f"networks are {', '.join(names)}; add {OURS}, which they are compared with")


def refuse(device: str, **options: object) -> None:
    """Raises ValueError for an option that was given, and that measuring on a device has no use for."""
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"{name} is {value}, for which there is no use on {device}; leave it out")


def cpu_table(report: CPUReport) -> Table:
    """Times, and how they compare."""
    threads = report.environment.threads
    table = Table(title=f"batch {report.batch}, {report.size}x{report.size} latents, fp32, threads: {threads}")
    for heading in ("network", "params M", "GMACs", "pass", "CPU s min", "median", "wall s min", "median", "vs ours"):
        table.add_column(heading, justify="left" if heading in ("network", "pass") else "right")
    for task, timings in (("forward", report.forward), ("training", report.training)):
        for name, timing in timings.items():
            cost, seconds = report.costs[name], (timing.cpu_min_s, timing.cpu_median_s)
            walls = timing.wall_min_s, timing.wall_median_s
            versus = report.ratios.get(f"{task}_ratio_to_{name}", 1.0)
            numbers = [f"{value:.3f}" for value in (*seconds, *walls)]
            table.add_row(name, f"{cost.params_m:.1f}", f"{cost.gmacs:.1f}", task, *numbers, f"{versus:.2f}x")
    return table


def main(
    json: Path | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    size: int = 32,
    batch: int | None = None,
    batches: tuple[int, ...] | None = None,
    modes: tuple[Mode, ...] | None = None,
    rounds: int = 9,
    training_rounds: int | None = None,
    threads: int | None = None,
    networks: Sequence[str] = tuple(SUBJECTS),
) -> None:
    """Times SnapGen's UNet beside DiT-XL/2 and the thin SDXL baseline.

    Args:
        json: file for the record; none is written if not given.
        device: where to measure.
        size: height and width of the latent.
        batch: images a pass on the CPU (default 1).
        batches: images a step on a GPU, one after the other (default 256); what does not fit is told to be so.
        modes: how steps run on a GPU, one after the other (default compiled, graphed, eager).
        rounds: timed predictions of each network.
        training_rounds: timed training steps of each network (default none on the CPU, as many as rounds on a GPU).
        networks: which of them, ``snapgen`` among them on the CPU.
        threads: threads on the CPU (default 1: on a shared machine the time of several depends on who else runs).

    Raises:
        ValueError: for an option that the device has no use for.
    """
    check_networks(networks, compared=device == "cpu")
    subjects = {name: SUBJECTS[name] for name in networks}
    if device == "cpu":
        refuse(device, batches=batches, modes=modes)
        torch.set_num_threads(threads or 1)
        report = run_cpu(subjects, batch or 1, size, rounds, training_rounds or 0)
        _write(report, json)
        table = cpu_table(report)
    else:
        refuse(device, batch=batch, threads=threads)
        batches, modes = (256,) if batches is None else batches, get_args(Mode) if modes is None else modes
        training_rounds = rounds if training_rounds is None else training_rounds
        check_sweep(batches, modes, min(rounds, training_rounds))
        for known in run_cuda(subjects, batches, modes, size, rounds, training_rounds):
            _write(known, json)
        table = cuda_table(known)
    Console(width=120).print(table)


def _write(report: CPUReport | CUDAReport, json: Path | None) -> None:
    if json is not None:
        write_json(report.record(), json)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
