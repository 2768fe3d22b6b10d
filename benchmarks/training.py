"""Training steps of every stage, of SnapGen's UNet and its peers: ``python -m benchmarks.training --json FILE``.

Pretraining, distillation, and the two turns of step distillation, of each network as the student of one teacher, whose
shapes are Stable Diffusion 3.5 Large's; and how a step divides among student, teacher, discriminator's heads, optimizer
and average. No text encoders and no autoencoder: states and latents are stored. On a CPU: fp32, one thread, interleaved
rounds, before a few of the teacher's blocks. On a GPU (``--device cuda``): bf16 autocast, before all of them.
"""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from benchmarks.clock import Clock, Part
from benchmarks.cuda import CUDAReport, Mode, Throughput, check_sweep, cuda_table, throughput, waited
from benchmarks.networks import SUBJECTS, Subject, materialise
from benchmarks.teacher import TOKENS
from benchmarks.timing import Environment, Sample, Timing, environment, summarise
from benchmarks.training_step import WORK, Stage, Step, Update, features_read, pieces, whole_step
from benchmarks.unet import check_networks, ratios, ratios_first, refuse
from snapgen_pl.experiments import experiments_dir
from snapgen_pl.models.count import Cost, count
from snapgen_pl.models.denoiser import Denoiser
from snapgen_pl.models.mmdit import MMDiT
from snapgen_pl.tables.declared import declared_denoiser
from snapgen_pl.whole_files import write_json

# Beside the networks of the ImageNet table that of experiments/t2i, fed CLIP-L and CLIP-G side by side, Gemma, and a
# learned token.
STUDENTS: Mapping[str, Subject] = {
    **SUBJECTS,
    "snapgen_t2i": Subject(
        lambda size: declared_denoiser(experiments_dir() / "t2i" / "kd_output.yaml"), tokens=77 + 78
    ),
}
TEACHER, OBSERVED = "teacher", "teacher, for the features that heads read"
LAYERS = {"cpu": 2, "cuda": 38}  # of the teacher, unless told otherwise
MakeTeacher: TypeAlias = Callable[[torch.device, int], MMDiT]
Parts: TypeAlias = dict[Part, Sample]
_STEP = (
    "random weights; a step is what fit does with a batch but for its draws: loss terms, gradients, their clipping, "
    "fused AdamW, and the average; in turns of step distillation that of one network, the discriminator's without an "
    "average; the teacher gives guided velocities in distillation, and features where a student has any on its grid, "
    "in step distillation velocities and features without guidance; "
)
_CPU = (
    "fp32, channels_last, eager, subnormal numbers taken for zero; interleaved rounds after one that warms up, one "
    "student at a time in memory; optimizer and average piece by piece, whose state is made before; teacher: its "
    "forward passes, and in the generator's turn the gradients through it and the heads; ratios: minimum of the peer "
    "over minimum of snapgen, of process CPU time or wall time"
)
_CUDA = (
    "students, heads and averages in fp32 under bf16 autocast, the teacher in bf16; median over steps by device "
    "events; graphed: compiled, and the step captured as one CUDA graph; MFU: counted FLOPs of student and teacher, "
    "the latter for features up to the last that is read, over the device's dense bf16 peak; parts: of one step more, "
    "each waited for"
)


@dataclass(frozen=True)
class Divided:
    """A step, and its parts."""

    step: Timing
    parts: dict[Part, Timing]

    def share(self, part: Part) -> float:
        """Of a part in all of them, by the minima of CPU time."""
        found = self.parts.get(part)
        return 0.0 if found is None else found.cpu_min_s / sum(each.cpu_min_s for each in self.parts.values())


@dataclass(frozen=True)
class CPUReport:
    """What a run on the CPU found.

    Attributes:
        protocol: what was timed.
        environment: where.
        batch: images a step.
        size: height and width of the latent.
        costs: parameters and multiply-accumulates of one image, by network, the teacher among them.
        stages: steps by stage and network.
        ratios: time of a peer over ours, from minima; above 1 ours is faster.
    """

    protocol: str
    environment: Environment
    batch: int
    size: int
    costs: dict[str, Cost]
    stages: dict[Stage, dict[str, Divided]]
    ratios: dict[str, float]

    def record(self) -> dict[str, object]:
        """For JSON."""
        return ratios_first(asdict(self), self.costs)


def teacher_network(layers: int, device: torch.device, channels: int) -> MMDiT:
    """Stable Diffusion 3.5 Large's transformer, or fewer of its blocks, on latents of so many channels."""
    with device:
        network = MMDiT(in_channels=channels, layers=layers)
    return network.to(torch.bfloat16) if device.type == "cuda" else network


def run_cpu(
    students: Mapping[str, Subject],
    stages: Sequence[Stage],
    make_teacher: MakeTeacher,
    batch: int,
    size: int,
    rounds: int,
) -> CPUReport:
    """Times steps of all students in turn.

    Args:
        students: networks by name, ``snapgen`` among them.
        stages: whose steps.
        make_teacher: the teacher's network on a device, for latents of so many channels.
        batch: images a step.
        size: height and width of the latent.
        rounds: timed steps of each.
    """
    where, costs = environment("benchmarks.training"), _costs(students, make_teacher, size)
    device = torch.device("cpu")
    teacher = make_teacher(device, _channels(students, size))
    found: dict[Stage, dict[str, list[Parts]]] = {stage: {name: [] for name in students} for stage in stages}
    for round_index, (name, subject) in product(range(1 + rounds), students.items()):
        student = materialise(partial(subject.build, size), device)
        for stage in stages:
            parts = timed(stage, student, subject.tokens, teacher, size, batch)
            if round_index:
                found[stage][name].append(parts)
        del student
        gc.collect()  # modules and their hooks refer to each other
    steps = {stage: {name: divided(own) for name, own in by_name.items()} for stage, by_name in found.items()}
    compared: dict[str, float] = {}
    for stage, by_name in steps.items():
        compared |= ratios(stage, {name: each.step for name, each in by_name.items()})
    return CPUReport(_STEP + _CPU, where, batch, size, costs, steps, compared)


def timed(stage: Stage, student: Denoiser, tokens: int, teacher: MMDiT, size: int, batch: int) -> Parts:
    """One step on the CPU, part by part; see :class:`~benchmarks.training_step.Step`."""
    clock = Clock()
    step = Step(stage, student, tokens, teacher, size, batch, clock)
    parts = clock.parts(step.gradients)
    for piece in pieces(step.weights):  # all of DiT's, with state, gradients and average, would be 14 GB
        update = Update(piece, step.averaged, clock)
        update()  # makes the state
        for part, sample in clock.parts(update).items():
            parts[part] = parts.get(part, Sample(0.0, 0.0)).plus(sample)
    for weight in step.weights:
        weight.grad = None
    return parts


def divided(rounds: Sequence[Parts]) -> Divided:
    """Statistics of a step over rounds, and of its parts."""
    steps = [Sample(*map(sum, zip(*parts.values(), strict=True))) for parts in rounds]
    return Divided(summarise(steps), {part: summarise([parts[part] for parts in rounds]) for part in rounds[0]})


def run_cuda(
    students: Mapping[str, Subject],
    stages: Sequence[Stage],
    make_teacher: MakeTeacher,
    batches: Sequence[int],
    modes: Sequence[Mode],
    size: int,
    rounds: int,
) -> Iterator[CUDAReport]:
    """Measures each student alone: batch by batch, mode by mode, stage by stage.

    Args:
        students: networks by name.
        stages: whose steps.
        make_teacher: the teacher's network on a device, for latents of so many channels.
        batches: images a step.
        modes: how steps run.
        size: height and width of the latent.
        rounds: timed steps of each.
    """
    channels = _channels(students, size)
    report = CUDAReport(
        protocol=_STEP + _CUDA,
        environment=environment("benchmarks.training", accelerator=True),
        size=size,
        costs=_costs(students, make_teacher, size),
        rows={name: [] for name in students},
    )

    def measured(batch: int, mode: Mode, stage: Stage, name: str) -> Throughput:
        clock, subject = Clock(waited), students[name]

        def make(device: torch.device) -> Callable[[], None]:
            student = materialise(partial(subject.build, size), device)
            teacher = make_teacher(device, channels)
            return whole_step(Step(stage, student, subject.tokens, teacher, size, batch, clock, mode))

        work = WORK[stage]
        by_network = zip(work, (name, TEACHER, OBSERVED), strict=True)
        flops = sum(flops_a_mac * report.costs[network].macs for flops_a_mac, network in by_network)
        return throughput(make, stage, mode, batch, flops, rounds, clock)

    return report.filled(
        (name, partial(measured, batch, mode, stage, name))
        for batch, mode, stage, name in product(batches, modes, stages, students)
    )


def _channels(students: Mapping[str, Subject], size: int) -> int:
    with torch.device("meta"):
        channels = {name: subject.build(size).in_channels for name, subject in students.items()}
    if len(set(channels.values())) > 1:
        raise ValueError(f"channels of the latents are {channels}, and a teacher has one number; measure them in turn")
    return next(iter(channels.values()))


def _costs(students: Mapping[str, Subject], make_teacher: MakeTeacher, size: int) -> dict[str, Cost]:
    teacher = make_teacher(torch.device("meta"), _channels(students, size))
    costs = {name: subject.cost(size) for name, subject in students.items()}
    observed = count(teacher, size, TOKENS, features_read(teacher))
    return costs | {TEACHER: count(teacher, size, TOKENS), OBSERVED: observed}


@contextmanager
def without_subnormals() -> Iterator[None]:
    """Takes subnormal numbers for zero: gradients through random weights are so small that AdamW's squares are slow."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def cpu_table(report: CPUReport) -> Table:
    """Times, how they compare, and how they divide."""
    teacher = report.costs[TEACHER]
    told = f"a teacher of {teacher.params_m:.0f} M and {teacher.gmacs:.0f} GMACs"
    table = Table(title=f"batch {report.batch}, {report.size}x{report.size} latents, fp32, before {told}")
    for heading in ("step", "student", "CPU s min", "median", "vs ours", *(f"{part} %" for part in get_args(Part))):
        table.add_column(heading, justify="left" if heading in ("step", "student") else "right")
    for stage, by_name in report.stages.items():
        for name, found in by_name.items():
            versus = report.ratios.get(f"{stage}_ratio_to_{name}", 1.0)
            numbers = f"{found.step.cpu_min_s:.2f}", f"{found.step.cpu_median_s:.2f}", f"{versus:.2f}x"
            table.add_row(stage, name, *numbers, *(f"{100 * found.share(part):.0f}" for part in get_args(Part)))
    return table


def main(
    json: Path | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    size: int = 32,
    batch: int | None = None,
    batches: tuple[int, ...] | None = None,
    modes: tuple[Mode, ...] | None = None,
    stages: tuple[Stage, ...] = get_args(Stage),
    teacher_layers: int | None = None,
    rounds: int = 3,
    networks: Sequence[str] = tuple(SUBJECTS),
) -> None:
    """Times training steps of every stage, of SnapGen's UNet and its peers.

    Args:
        json: file for the record; none is written if not given.
        device: where to measure; on the CPU by one thread.
        size: height and width of the latent.
        batch: images a step on the CPU (default 1).
        batches: images a step on a GPU, one after the other (default 64); what does not fit is told to be so.
        modes: how steps run on a GPU, one after the other (default compiled, graphed, eager).
        stages: whose steps: pretraining, distillation, and the generator's and the discriminator's turns.
        teacher_layers: blocks of the teacher (default 2 on the CPU, and on a GPU all 38).
        rounds: timed steps of each.
        networks: the students, ``snapgen`` among them on the CPU; ``snapgen_t2i`` is that of text-to-image.

    Raises:
        ValueError: for an option that the device has no use for, or students that cannot have one teacher.
    """
    check_networks(networks, compared=device == "cpu", known=STUDENTS)
    layers = LAYERS[device] if teacher_layers is None else teacher_layers
    if not stages or min(rounds, layers, 1 if batch is None else batch) < 1:
        raise ValueError(
            f"stages are {list(stages)}, rounds {rounds}, teacher_layers {layers}, batch {batch}; give at least one of "
            "each"
        )
    students = {name: STUDENTS[name] for name in networks}
    if device == "cpu":
        refuse(device, batches=batches, modes=modes)
        torch.set_num_threads(1)
        with without_subnormals():
            report = run_cpu(students, stages, partial(teacher_network, layers), batch or 1, size, rounds)
        if json is not None:
            write_json(report.record(), json)
        table = cpu_table(report)
    else:
        refuse(device, batch=batch)
        batches, modes = (64,) if batches is None else batches, get_args(Mode) if modes is None else modes
        check_sweep(batches, modes, rounds)
        for known in run_cuda(students, stages, partial(teacher_network, layers), batches, modes, size, rounds):
            if json is not None:
                write_json(known.record(), json)
        table = cuda_table(known)
    Console(width=140).print(table)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
