"""Throughput, model FLOPs utilisation and memory on one NVIDIA GPU, in bf16 autocast."""

import gc
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch

from benchmarks.kernels import Breakdown, breakdown
from benchmarks.networks import Subject, feed, forward, forward_backward, materialise
from snapgen_pl.models.regions import compile_regions
from snapgen_pl.peak import dense_bf16_peak

Task = Literal["forward", "training"]
# FLOPs an image for each multiply-accumulate of the forward pass; the backward pass costs two forward passes.
_FLOPS_PER_MAC: dict[Task, int] = {"forward": 2, "training": 6}
_WARMUPS = 3


@dataclass(frozen=True)
class Throughput:
    """One measurement; ``mfu`` is None where the peak is unknown, ``kernels`` says where a step's time went."""

    task: Task
    compiled: bool
    batch: int
    micro_batch: int
    images_per_s: float
    mfu: float | None
    peak_memory_gib: float
    step_ms: float
    kernels: Breakdown


def throughput(
    subject: Subject, task: Task, compiled: bool, batch: int, micro_batch: int, size: int, steps: int
) -> Throughput:
    """Measures one network alone on the GPU, by device events, as the median over steps.

    A forward step predicts ``batch`` images; a training step is forward, loss and backward over them and one fused
    AdamW update of fp32 weights.

    Args:
        subject: the network.
        task: forward or training.
        compiled: whether the network is compiled.
        batch: images a step.
        micro_batch: images a pass; gradients accumulate over passes.
        size: height and width of the latent.
        steps: timed steps.

    Raises:
        ValueError: where passes do not add up to a batch.
    """
    if micro_batch < 1 or batch % micro_batch:
        raise ValueError(f"batch {batch} is not a multiple of micro_batch {micro_batch}")
    device = torch.device("cuda")
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()

    network = materialise(partial(subject.build, size), device)
    if compiled:
        compile_regions(network)
    fed = feed(network, micro_batch, size, subject.tokens, device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.0, fused=True)

    def step() -> None:
        for _ in range(batch // micro_batch):
            with torch.autocast("cuda", torch.bfloat16):
                forward(network, fed) if task == "forward" else forward_backward(network, fed)
        if task == "training":
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    step_s = median_step_s(step, steps)
    images_per_s = batch / step_s
    peak = dense_bf16_peak(device)
    flops_per_s = _FLOPS_PER_MAC[task] * subject.cost(size).macs * images_per_s
    return Throughput(
        task=task,
        compiled=compiled,
        batch=batch,
        micro_batch=micro_batch,
        images_per_s=images_per_s,
        mfu=None if peak is None else flops_per_s / peak,
        peak_memory_gib=torch.cuda.max_memory_allocated() / 2**30,
        step_ms=1e3 * step_s,
        kernels=breakdown(step),
    )


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
