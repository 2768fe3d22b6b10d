"""A run small enough to be killed often: dropout, EMA, a warm-up, an endless loader. Also a script: see `main`."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

import callbacks.checkpoint
from callbacks.checkpoint import AtomicCheckpointIO, LastCheckpoint
from callbacks.ema import EMA
from callbacks.lost_process import LostProcess
from callbacks.nonfinite import NonFinite
from callbacks.rng_state import RngState
from callbacks.termination import Termination
from snapgen_pl import rng
from snapgen_pl.checkpoints import LAST, newest
from snapgen_pl.data.source import ImageBatch
from snapgen_pl.distill.loss_terms import LossTerm, LossTerms, WeightedSum

EPOCH = 20
PIXELS = 3 * 4 * 4


def images(position_B: Tensor) -> ImageBatch:
    """The samples at these places of an endless stream that is shuffled anew each epoch."""
    index = [
        int(torch.randperm(EPOCH, generator=torch.Generator().manual_seed(p // EPOCH))[p % EPOCH])
        for p in position_B.tolist()
    ]
    pixels = rng.uniform(9, 0, torch.tensor(index), (3, 4, 4)) * 255
    return ImageBatch(pixels.to(torch.uint8), torch.tensor(index) % 3, position_B)


class Stream:
    """An endless epoch: a length, a position, and each rank's slice of every global batch."""

    def __init__(self, batch_size: int, ranks: int = 1, rank: int = 0) -> None:
        self.batch_size, self.ranks, self.rank, self.batches = batch_size, ranks, rank, 0

    def __len__(self) -> int:
        return 10**9

    def __iter__(self) -> Iterator[ImageBatch]:
        while True:
            first = self.batches * self.batch_size + self.rank * self.batch_size // self.ranks
            self.batches += 1
            yield images(torch.arange(first, first + self.batch_size // self.ranks))

    def state_dict(self) -> dict[str, int]:
        return {"batches": self.batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.batches = state["batches"]


class Tiny(L.LightningModule):
    """What callbacks ask of a stage, over a small perceptron with dropout."""

    def __init__(self, dropout: float = 0.2, nan_at: int = -1, seed: int = 0) -> None:
        super().__init__()
        self.denoiser = nn.Sequential(nn.Linear(PIXELS, 32), nn.SiLU(), nn.Dropout(dropout), nn.Linear(32, PIXELS))
        self.conditioner = nn.Embedding(3, PIXELS)
        self.combine = WeightedSum()
        self.images_seen, self.seed, self.nan_at = 0, seed, nan_at
        self.macs_per_image = PIXELS * 32 * 2

    def training_step(self, batch: ImageBatch, batch_idx: int) -> dict[str, Any]:
        t_B = rng.uniform(self.seed, rng.Stream.TIMESTEP, batch.position_B)
        noise = rng.normal(self.seed, rng.Stream.NOISE, batch.position_B, (PIXELS,))
        data = batch.image_BCHW.flatten(1) / 127.5 - 1
        x = torch.lerp(data, noise, t_B[:, None])
        error = (self.denoiser(x) + self.conditioner(batch.condition) - (noise - data)).square().mean(1)
        error = error.where(batch.position_B != self.nan_at, torch.nan)
        terms = LossTerms(t_B, (LossTerm("task", "task", error),))
        loss = self.combine(terms).loss
        self.images_seen += len(t_B) * self.trainer.world_size
        self.log("train/loss", loss)
        detached = LossTerms(t_B, (LossTerm("task", "task", error.detach()),))
        return {"loss": loss, "terms": detached, "position_B": batch.position_B}

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        self.log("val/loss", self.denoiser(batch.image_BCHW.flatten(1) / 255).square().mean(), sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: min(1.0, self.images_seen / 60))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["images_seen"] = self.images_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.images_seen = checkpoint["images_seen"]


class Touched(L.Callback):
    """Keeps which child modules each batch gave gradients, and which it moved."""

    def __init__(self) -> None:
        self.with_gradients: list[set[str]] = []
        self.moved: list[set[str]] = []
        self._before: dict[str, Tensor] = {}

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        self._before = {name: weight.detach().clone() for name, weight in pl_module.named_parameters()}

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        found = {name.split(".")[0] for name, weight in pl_module.named_parameters() if weight.grad is not None}
        self.with_gradients.append(found)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        weights = dict(pl_module.named_parameters())
        self.moved.append(
            {n.split(".")[0] for n, weight in weights.items() if not torch.equal(weight, self._before[n])}
        )


class KillAt(L.Callback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == self.step:
            self.step = -1
            self.send()

    def send(self) -> None:
        os.kill(os.getpid(), self.number)


def callbacks_of_a_run(every_n_steps: int, averaged: tuple[str, ...]) -> list[L.Callback]:
    ema = EMA(half_life_images=50, modules=averaged)
    return [ema, NonFinite(), RngState(), Termination(), LostProcess(), LastCheckpoint(every_n_steps)]


def trainer_for(
    folder: Path,
    steps: int,
    every_n_steps: int = 4,
    accumulate: int = 1,
    ours: bool = True,
    averaged: tuple[str, ...] = ("denoiser", "conditioner"),
    **options: Any,
) -> L.Trainer:
    """A trainer with the given callbacks and, unless told otherwise, those of a run."""
    own = callbacks_of_a_run(every_n_steps, averaged) if ours else []
    options["callbacks"] = [*options.get("callbacks", ()), *own]
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "limit_val_batches": 1,
        "val_check_interval": 3 * accumulate,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_checkpointing": any(isinstance(c, LastCheckpoint) for c in options["callbacks"]),
    }
    return L.Trainer(
        **(defaults | options),
        default_root_dir=folder,
        max_steps=steps,
        max_epochs=-1,
        check_val_every_n_epoch=None,
        accumulate_grad_batches=accumulate,
        use_distributed_sampler=False,
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def train(
    folder: Path, steps: int, resume: bool = False, make: Callable[[], Tiny] = Tiny, batch_size: int = 6, **options: Any
) -> dict[str, Any]:
    """Trains (further) and returns the last checkpoint."""
    # A resumed process starts from another state of the generators than a fresh one.
    L.seed_everything(123 if resume else 0, verbose=False)
    module = make()
    trainer = trainer_for(folder, steps, **options)
    stream = Stream(batch_size, trainer.world_size, trainer.global_rank)
    trainer.fit(module, stream, Stream(6), ckpt_path=newest(folder) if resume else None)
    return load(folder / LAST)


def load(path: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return checkpoint


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """A checkpoint's leaves by path."""
    if isinstance(value, dict):
        return {k: v for key in value for k, v in flat(value[key], f"{path}/{key}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for i, item in enumerate(value) for k, v in flat(item, f"{path}/{i}").items()}
    return {path: value}


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Paths at which two checkpoints are not the same to the bit."""
    left, right = flat(a), flat(b)

    def same(x: Any, y: Any) -> bool:
        return torch.equal(x, y) if isinstance(x, Tensor) and isinstance(y, Tensor) else bool(x == y)

    return [k for k in left.keys() | right.keys() if k not in left or k not in right or not same(left[k], right[k])]


def plant_kill(moment: str) -> None:
    """Makes the second checkpoint's writing end in SIGKILL: halfway through the bytes, or between the renames."""
    save, replace, saves = torch.save, Path.replace, [0]

    def half_a_save(checkpoint: object, file: Any) -> None:
        saves[0] += 1
        save(checkpoint, file)
        if saves[0] == 2 and moment == "writing":
            file.flush()
            os.ftruncate(file.fileno(), file.tell() // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def half_a_rename(self: Path, target: Path) -> Path:
        if saves[0] == 2 and moment == "renaming" and self.name.endswith(".part"):
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)

    callbacks.checkpoint.torch.save = half_a_save  # type: ignore[attr-defined]
    Path.replace = half_a_rename  # type: ignore[method-assign, assignment]


def main() -> None:
    """Runs in a process of its own, for what a test process does not survive."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=6)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--signal", choices=["SIGTERM", "SIGINT", "SIGKILL"])
    parser.add_argument("--at", type=int, default=-1)
    parser.add_argument("--only-rank", type=int, default=0)
    parser.add_argument("--die-while", choices=["writing", "renaming"])
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    extra: list[L.Callback] = []
    if arguments.signal and int(os.environ.get("LOCAL_RANK", "0")) == arguments.only_rank:
        extra.append(KillAt(arguments.at, signal.Signals[arguments.signal]))
    if arguments.die_while:
        plant_kill(arguments.die_while)
    train(
        arguments.folder,
        arguments.steps,
        arguments.resume,
        lambda: Tiny(arguments.dropout),
        arguments.batch_size,
        accumulate=arguments.accumulate,
        devices=arguments.devices,
        strategy="ddp" if arguments.devices > 1 else "auto",
        callbacks=extra,
    )


if __name__ == "__main__":
    sys.exit(main())
