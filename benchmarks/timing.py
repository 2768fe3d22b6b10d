"""Interleaved timing, and the record of the machine that a number was measured on."""

import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

import torch

from snapgen_pl.provenance import describe_code, describe_machine


class Sample(NamedTuple):
    """One call: seconds of this process's CPU time over all threads, and of wall time."""

    cpu_s: float
    wall_s: float

    def plus(self, other: "Sample") -> "Sample":
        """Both calls as one."""
        return Sample(self.cpu_s + other.cpu_s, self.wall_s + other.wall_s)


def now() -> Sample:
    """Both clocks, each from a beginning of its own."""
    return Sample(time.process_time(), time.perf_counter())


def spent(before: Sample, after: Sample) -> Sample:
    """What passed between two readings of the clocks."""
    return Sample(after.cpu_s - before.cpu_s, after.wall_s - before.wall_s)


@dataclass(frozen=True)
class Timing:
    """Statistics over rounds, in seconds.

    The minimum of the CPU time is what other processes on the machine disturb least; the medians show how much.
    """

    rounds: int
    cpu_min_s: float
    cpu_median_s: float
    wall_min_s: float
    wall_median_s: float


def interleave(subjects: Mapping[str, Callable[[], object]], rounds: int, warmups: int = 1) -> dict[str, Timing]:
    """Times the subjects in turn, A B C A B C, so that a slow spell of the machine meets all of them alike.

    Args:
        subjects: what to call, by name.
        rounds: timed calls of each.
        warmups: untimed calls of each before.

    Raises:
        ValueError: for less than one round.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; statistics need at least 1")
    samples: dict[str, list[Sample]] = {name: [] for name in subjects}
    for round_index in range(warmups + rounds):
        for name, call in subjects.items():
            sample = measure(call)
            if round_index >= warmups:
                samples[name].append(sample)
    return {name: summarise(own) for name, own in samples.items()}


def measure(call: Callable[[], object]) -> Sample:
    """Times one call."""
    before = now()
    call()
    return spent(before, now())


def summarise(samples: Sequence[Sample]) -> Timing:
    """Minima and medians."""
    cpu_s, wall_s = [sample.cpu_s for sample in samples], [sample.wall_s for sample in samples]
    return Timing(len(samples), min(cpu_s), statistics.median(cpu_s), min(wall_s), statistics.median(wall_s))


@dataclass(frozen=True)
class Environment:
    """What a number depends on besides the code.

    ``commit`` and ``dirty`` are None outside a git checkout; ``load_average`` is the last minute's, before measuring.
    """

    command: str
    date: str
    commit: str | None
    dirty: bool | None
    processor: str
    cores: int
    threads: int
    omp_wait_policy: str
    load_average: float
    accelerator: str | None
    python: str
    torch: str


def environment(module: str, accelerator: bool = False) -> Environment:
    """Records the machine, the versions and the command.

    Args:
        module: the benchmark's module, for the command.
        accelerator: whether the GPU took part.
    """
    code, machine = describe_code(), describe_machine()
    return Environment(
        command=shlex.join(["python", "-m", module, *sys.argv[1:]]),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=code.commit,
        dirty=code.dirty,
        processor=machine.cpu,
        cores=machine.cores or 1,
        threads=machine.threads,
        omp_wait_policy=os.environ["OMP_WAIT_POLICY"],
        load_average=round(os.getloadavg()[0], 2),
        accelerator=torch.cuda.get_device_name() if accelerator else None,
        python=platform.python_version(),
        torch=torch.__version__,
    )
