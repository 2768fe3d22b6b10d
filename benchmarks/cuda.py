"""Throughput, model FLOPs utilisation and memory on one NVIDIA GPU, in bf16 autocast."""

import gc
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from rich.table import Table

from benchmarks.clock import Clock, Part
from benchmarks.kernels import Breakdown, breakdown
from benchmarks.networks import Subject, feed, forward, forward_backward, materialise, recorded
from benchmarks.timing import Environment, Sample, now
from snapgen_pl.models.count import TRAINING_FLOPS_A_MAC, Cost
from snapgen_pl.models.regions import compile_regions
from snapgen_pl.peak import dense_bf16_peak

Task = Literal["forward", "training"]
# How a step runs: its networks compiled by region; these, and the step captured as a CUDA graph, which the host then
# launches at once; as it is written.
Mode = Literal["compiled", "graphed", "eager"]
_FLOPS_PER_MAC: dict[Task, int] = {"forward": 2, "training": TRAINING_FLOPS_A_MAC}
_WARMUPS = 3


@dataclass(frozen=True)
class Throughput:
    """One measurement; where the batch did not fit into memory, nothing is known.

    Attributes:
        task: what a step does.
        compiled: whether the networks were compiled.
        graphed: whether the step was captured as a CUDA graph.
        batch: images a step.
        images_per_s: by the median step.
        mfu: None where the device's peak is unknown, too.
        peak_memory_gib: the most that was held, that of making the networks left out.
        step_ms: the median step.
        kernels: where a step's time went.
        parts_ms: of a step whose parts are waited for one by one; None where the step tells none, or is a graph.
    """

    task: str
    compiled: bool
    graphed: bool
    batch: int
    images_per_s: float | None = None
    mfu: float | None = None
    peak_memory_gib: float | None = None
    step_ms: float | None = None
    kernels: Breakdown | None = None
    parts_ms: dict[Part, float] | None = None


@dataclass(frozen=True)
class CUDAReport:
    """What a run on a GPU found; ``rows`` has one list of measurements a network."""

    protocol: str
    environment: Environment
    size: int
    costs: dict[str, Cost]
    rows: dict[str, list[Throughput]]

    def record(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self) | {"costs": recorded(self.costs)}

    def filled(self, measurements: Iterable[tuple[str, Callable[[], Throughput]]]) -> Iterator["CUDAReport"]:
        """Itself after each measurement, by network, so that none is lost where a later one fails."""
        for name, measurement in measurements:
            self.rows[name].append(measurement())
            yield self


def check_sweep(batches: Sequence[int], modes: Sequence[Mode], steps: int) -> None:
    """Checks what is to be measured on a GPU.

    Args:
        batches: images a step, one or more.
        modes: how steps run, one or more.
        steps: timed steps.

    Raises:
        ValueError: for nothing to measure, or where there is no GPU.
    """
    if not batches or not modes or min(*batches, steps) < 1:
        raise ValueError(
            f"batches are {list(batches)}, modes {list(modes)}, timed steps {steps}; give at least one batch and one "
            "mode, and numbers from 1 on"
        )
    if not torch.cuda.is_available():
        raise ValueError("device is cuda, but there is no GPU here, or torch was built without CUDA; use --device cpu")


def network_throughput(subject: Subject, task: Task, mode: Mode, batch: int, size: int, steps: int) -> Throughput:
    """Measures one network alone.

    Args:
        subject: the network.
        task: forward or training.
        mode: how the step runs.
        batch: images a step.
        size: height and width of the latent.
        steps: timed steps.
    """
    make = partial(network_step, subject, task, mode, batch, size)
    return throughput(make, task, mode, batch, _FLOPS_PER_MAC[task] * subject.cost(size).macs, steps)


def network_step(
    subject: Subject, task: Task, mode: Mode, batch: int, size: int, device: torch.device
) -> Callable[[], None]:
    """A step of a network alone: a prediction; or forward, loss, backward and a fused AdamW update of fp32 weights.

    Args:
        subject: the network.
        task: forward or training.
        mode: how the step runs; its networks are compiled here.
        batch: images a step.
        size: height and width of the latent.
        device: where.
    """
    network = materialise(partial(subject.build, size), device)
    if mode != "eager":
        compile_regions(network)
    fed = feed(network, batch, size, subject.tokens, device)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=1e-4, weight_decay=0.0, fused=True, capturable=mode == "graphed"
    )

    def step() -> None:
        with autocast(device, mode):
            forward(network, fed) if task == "forward" else forward_backward(network, fed)
        if task == "training":
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


def throughput(
    make: Callable[[torch.device], Callable[[], None]],
    task: str,
    mode: Mode,
    batch: int,
    flops: int,
    steps: int,
    clock: Clock | None = None,
) -> Throughput:
    """Measures a step alone on the GPU, by device events, as the median over steps.

    Args:
        make: builds what a step needs, on the device, and returns the step; both may run out of memory.
        task: its name, for the record.
        mode: how the step runs; ``make`` compiles what it builds.
        batch: images a step.
        flops: of an image.
        steps: timed steps.
        clock: is told the step's parts; reads the time by :func:`waited`.
    """
    gc.collect()
    torch.compiler.reset()  # graphs of networks before count towards the compiler's limits
    torch.cuda.empty_cache()
    how = partial(Throughput, task, compiled=mode != "eager", graphed=mode == "graphed", batch=batch)
    device = torch.device("cuda")
    try:
        step = make(device)
        torch.cuda.reset_peak_memory_stats()
        if mode == "graphed":
            step = captured(step)
        step_s = median_step_s(step, steps)
        images_per_s, peak = batch / step_s, dense_bf16_peak(device)
        return how(
            images_per_s=images_per_s,
            mfu=None if peak is None else flops * images_per_s / peak,
            peak_memory_gib=torch.cuda.max_memory_allocated() / 2**30,
            step_ms=1e3 * step_s,
            kernels=breakdown(step),
            parts_ms=None if clock is None or mode == "graphed" else _milliseconds(clock.parts(step)),
        )
    except torch.OutOfMemoryError:
        return how()


def autocast(device: torch.device, mode: Mode) -> torch.autocast:
    """bf16 on a GPU, fp32 on a CPU; a graph may not use weights that were cast before it was captured."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=mode != "graphed")


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """A step as a CUDA graph, whose replay is the step on the same inputs.

    Args:
        step: takes its inputs from where they are, waits for nothing on the device, and leaves no gradients behind:
            they are made within the graph's own memory.
    """
    # Libraries make ready by stream: it warms up on the one that it is captured on.
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARMUPS):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()
    replay: Callable[[], None] = graph.replay
    return replay


def median_step_s(step: Callable[[], None], steps: int) -> float:
    """Seconds of a step by device events, the median of ``steps`` after three that warm up."""
    for _ in range(_WARMUPS):
        step()
    events = [torch.Event("cuda", enable_timing=True) for _ in range(steps + 1)]
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    torch.cuda.synchronize()
    return statistics.median(before.elapsed_time(after) for before, after in pairwise(events)) / 1e3


def waited() -> Sample:
    """Both clocks, once the device has done all that it was given."""
    torch.cuda.synchronize()
    return now()


def cuda_table(report: CUDAReport) -> Table:
    """Throughput, utilisation and memory."""
    table = Table(title=f"{report.environment.accelerator}, {report.size}x{report.size} latents, bf16 autocast")
    for heading in ("network", "params M", "GMACs", "step", "mode", "batch", "images/s", "MFU", "peak GiB"):
        table.add_column(heading, justify="left" if heading in ("network", "step", "mode") else "right")
    for name, rows in report.rows.items():
        cost = report.costs[name]
        for row in rows:
            mode = "graphed" if row.graphed else "compiled" if row.compiled else "eager"
            what = name, f"{cost.params_m:.1f}", f"{cost.gmacs:.1f}", row.task, mode, str(row.batch)
            table.add_row(*what, *_figures(row))
    return table


def _figures(row: Throughput) -> tuple[str, str, str]:
    if row.images_per_s is None:
        return "does not fit", "", ""
    return f"{row.images_per_s:.1f}", "-" if row.mfu is None else f"{row.mfu:.1%}", f"{row.peak_memory_gib:.1f}"


def _milliseconds(parts: dict[Part, Sample]) -> dict[Part, float]:
    return {part: 1e3 * sample.wall_s for part, sample in parts.items()}
