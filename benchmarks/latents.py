"""Loading latents beside what the reference model consumes: ``python -m benchmarks.latents --json FILE``.

Writes shards of random latents (4 channels, 32 x 32, fp16, both flips), puts them out of the system's cache, opens them
as training does, and counts samples; then trains 50 steps on them and looks where the time went. In about a minute.
"""

import os
import resource
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import lightning as L
import torch
from jsonargparse import auto_cli
from lightning.pytorch.profilers import SimpleProfiler
from rich.console import Console
from rich.table import Table

from benchmarks.timing import Environment, environment
from snapgen_pl.autoencoders.autoencoder import Posterior
from snapgen_pl.autoencoders.kl import KL
from snapgen_pl.conditioning.class_tokens import ClassTokens
from snapgen_pl.data.datamodule import ImageData
from snapgen_pl.data.latents import FORMAT, LatentFacts, Latents, latent_tensors
from snapgen_pl.data.shards import Plan, write_manifest, write_shard
from snapgen_pl.models.unet import Block, Stage, UNet
from snapgen_pl.modules.pretrain import Pretrain
from snapgen_pl.terminal import quiet
from snapgen_pl.whole_files import write_json

CONSUMED_PER_S = 1_500  # images a GPU, assumed for the reference model at 256 px
CHANNELS, SIDE, CLASSES = 4, 32, 1000
WAIT, STEP = "[_TrainingEpochLoop].train_dataloader_next", "run_training_batch"


@dataclass(frozen=True)
class Loading:
    """Samples a second that one training process is handed.

    Attributes:
        workers: processes that load; 0 is the training process itself.
        samples_per_s: over all batches.
        ratio: over what the reference model is assumed to consume.
    """

    workers: int
    samples_per_s: float
    ratio: float


@dataclass(frozen=True)
class Training:
    """Where 50 training steps spent their time.

    Attributes:
        steps: how many, after a first that loads libraries.
        wait_s: time spent waiting for batches, in all.
        step_s: time spent in steps, in all.
        major_faults: memory accesses that had to wait for the disk.
        read_bytes: bytes that the process had read from the disk; None where the system does not say.
    """

    steps: int
    wait_s: float
    step_s: float
    major_faults: int
    read_bytes: int | None


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        protocol: what was timed.
        environment: where.
        samples: images in the shards.
        gigabytes: size of the shards.
        verify_s: reading all shards through once, from outside the system's cache.
        loading: by workers.
        training: 50 steps.
    """

    protocol: str
    environment: Environment
    samples: int
    gigabytes: float
    verify_s: float
    loading: list[Loading]
    training: Training


def autoencoder(folder: Path) -> KL:
    """A small AutoencoderKL of the right shape, ready."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    blocks = 4
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(8,) * blocks,
        norm_num_groups=4,
        latent_channels=CHANNELS,
    ).save_pretrained(folder)
    network = KL(str(folder))
    network.ready(folder, ())
    return network


def write(folder: Path, samples: int, network: KL) -> float:
    """Writes shards of random latents and puts them out of the system's cache; returns their gigabytes."""
    folder.mkdir()
    names = tuple(str(label) for label in range(CLASSES))
    facts = LatentFacts(network.identity(), 256, 2, "float16", names)
    plan = Plan(FORMAT, facts.as_json(), "random", (samples, 256), 4096)
    for shard in plan.shards:
        shape = (shard.count, facts.flips, CHANNELS, SIDE, SIDE)
        latents, labels = Posterior(torch.randn(shape), torch.rand(shape)), torch.arange(shard.count) % CLASSES
        write_shard(folder, plan, shard, latent_tensors(latents, facts.dtype, labels, None))
    write_manifest(folder, plan, {})
    files = [folder / shard.file for shard in plan.shards]
    for file in files if hasattr(os, "posix_fadvise") else ():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return sum(file.stat().st_size for file in files) / 1e9


def load(folder: Path, batch: int, batches: int, workers: int) -> Loading:
    """Counts the samples that the training loader hands out after a warm-up batch."""
    data = ImageData(Latents(str(folder), verify=False), 256, batch, flip=True, workers=workers)
    data.setup("fit")
    loader = iter(data.train_dataloader())
    next(loader)
    start = time.perf_counter()
    count = sum(len(handed.position_B) for handed in islice(loader, batches))
    rate = count / (time.perf_counter() - start)
    return Loading(workers, rate, rate / CONSUMED_PER_S)


def train(folder: Path, network: KL, steps: int) -> Training:
    """Trains a small UNet as ``fit`` does, and looks at what it waited for."""
    stages = [
        Stage(64, down=[Block(residual=False, layers=1)], up=[Block()] * 2),
        Stage(128, down=[Block(layers=1)], up=[Block(layers=1)] * 2, self_attention=True),
    ]
    unet = UNet(stages, middle_layers=1, in_channels=CHANNELS, context_dim=64)
    profiler, watch = SimpleProfiler(dirpath=folder, filename="profile"), WatchDisk()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps + 1,
        max_epochs=-1,
        limit_val_batches=0,
        callbacks=[watch],
        profiler=profiler,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    data = ImageData(Latents(str(folder), verify=False), 256, 16, flip=True)
    module = Pretrain(unet, ClassTokens(CLASSES, 1, 64), network, 256)
    trainer.fit(module, datamodule=data)
    wait, step = (profiler.recorded_durations[name][1:] for name in (WAIT, STEP))
    return Training(len(step), sum(wait), sum(step), *watch.reads)


class DiskReads(NamedTuple):
    """What this process has waited for the disk for so far.

    Attributes:
        major_faults: memory accesses that had to.
        read_bytes: bytes read; None where the system does not say.
    """

    major_faults: int
    read_bytes: int | None

    @classmethod
    def now(cls) -> "DiskReads":
        """The counters as they are."""
        counters, read = Path("/proc/self/io"), None
        if counters.exists():
            read = int(dict(line.split(": ") for line in counters.read_text().splitlines())["read_bytes"])
        return cls(resource.getrusage(resource.RUSAGE_SELF).ru_majflt, read)

    def since(self, before: "DiskReads") -> "DiskReads":
        """The difference."""
        if self.read_bytes is None or before.read_bytes is None:
            return DiskReads(self.major_faults - before.major_faults, None)
        return DiskReads(self.major_faults - before.major_faults, self.read_bytes - before.read_bytes)


class WatchDisk(L.Callback):
    """Reads the counters after the first step, which loads libraries, and when training ends."""

    reads = DiskReads(0, None)

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        """Starts to count."""
        if trainer.global_step == 1:
            self.reads = DiskReads.now()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """After the last step."""
        self.reads = DiskReads.now().since(self.reads)


def run(samples: int, batch: int, batches: int, steps: int) -> Report:
    """Measures all.

    Args:
        samples: images in the shards.
        batch: samples the loader hands out at once.
        batches: how many of them are counted.
        steps: training steps.
    """
    where = environment("benchmarks.latents")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "latents"
        network = autoencoder(Path(name) / "autoencoder")
        gigabytes = write(folder, samples, network)
        start = time.perf_counter()
        Latents(str(folder)).check()
        verify_s = time.perf_counter() - start
        return Report(
            protocol=f"{CHANNELS}x{SIDE}x{SIDE} means and deviations in fp16, flips drawn, batches of {batch}; "
            "verify: all shards hashed by one process, read from outside the system's cache where it can be told to "
            f"forget; loading: "
            f"{batches} batches after one; training: {steps} steps of 16 in a small UNet on the CPU, no workers; "
            f"ratio: over {CONSUMED_PER_S} images/s, an assumption for the reference model on one GPU",
            environment=where,
            samples=samples,
            gigabytes=gigabytes,
            verify_s=verify_s,
            loading=[load(folder, batch, batches, workers) for workers in (0, 2)],
            training=train(folder, network, steps),
        )


def table(report: Report) -> Table:
    """Rates, and what training waited for."""
    shown = Table(title=f"{report.samples} latents, {report.gigabytes:.2f} GB, verified in {report.verify_s:.1f} s")
    for heading in ("what", "figure"):
        shown.add_column(heading, justify="left" if heading == "what" else "right")
    for loading in report.loading:
        shown.add_row(f"samples/s, {loading.workers} workers", f"{loading.samples_per_s:,.0f}")
        shown.add_row(f"over {CONSUMED_PER_S}/s", f"{loading.ratio:.1f}x")
    training = report.training
    shown.add_row(f"{training.steps} steps", f"{training.step_s:.2f} s")
    shown.add_row("waiting for batches", f"{training.wait_s:.3f} s")
    shown.add_row("major faults, bytes read from disk", f"{training.major_faults}, {training.read_bytes}")
    return shown


def main(
    json: Path | None = None, samples: int = 20_000, batch: int = 256, batches: int = 400, steps: int = 50
) -> None:
    """Measures loading from latent shards.

    Args:
        json: file for the record; none is written if not given.
        samples: images in the shards: 33 KB each, in the folder for temporary files.
        batch: samples the loader hands out at once.
        batches: how many of them are counted.
        steps: training steps to profile.
    """
    quiet()
    report = run(samples, batch, batches, steps)
    Console(width=120).print(table(report))
    if json is not None:
        write_json(asdict(report), json)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
