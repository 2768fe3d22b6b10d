"""Writes what ``predict`` computes of a data set: latents, states of texts, or a teacher's outputs."""

import signal
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
import torch
from filelock import FileLock
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from callbacks.run_manifest import describe_hardware
from snapgen_pl.data.in_shards import InShards
from snapgen_pl.data.shards import MANIFEST, Plan, Shard, read_shard, write_manifest, write_shard
from snapgen_pl.provenance import describe_code
from snapgen_pl.runs import Run


@runtime_checkable
class Encodes(Protocol):
    """A module whose predictions make shards, such as :class:`~snapgen_pl.modules.encode.Encode`.

    Attributes:
        folder: what the shards' folder is called.
    """

    folder: str

    def plan(self) -> Plan:
        """What is to be computed; makes what computes it ready."""
        ...

    def shard(self, predictions: list[Any], positions: range) -> dict[str, Tensor]:
        """The tensors of a shard, of the predictions of its batches, in order."""
        ...


class ShardWriter(L.Callback):
    """Writes shards as they are complete, and at the end the manifest; see :mod:`snapgen_pl.data.shards`.

    Each process writes shards of its own; the folder must be one that all of them see. The same command again, on any
    number of processes, goes on after the shards that are there; a killed run loses at most one shard a process.

    Args:
        folder: where to; by default the module's ``folder`` in the run's.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self._parts: list[Any] = []
        self._claim: FileLock | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Looks which shards are there.

        Raises:
            ValueError: where the folder holds those of another encoding, or damaged ones.
        """
        data = getattr(trainer, "datamodule", None)
        if stage != "predict" or not isinstance(pl_module, Encodes) or not isinstance(data, InShards):
            raise ValueError(
                "ShardWriter serves `predict` with Encode or EncodeTexts and EncodingData, or with EncodeTeacher and "
                f"TeachingData, not `{stage}` with {type(pl_module).__name__} and {type(data).__name__}"
            )
        self._folder = Path(self.folder) if self.folder else Path(trainer.default_root_dir) / pl_module.folder
        self._module, self._plan, self._data = pl_module, pl_module.plan(), data
        if trainer.is_global_zero:
            self._claim = Run(self._folder).claim()
        data.shards = missing_shards(self._folder, self._plan)
        done = len(self._plan.shards) - len(data.shards)
        if done:
            rank_zero_info(f"{done} of {len(self._plan.shards)} shards are in {self._folder} already")
        # Nobody may write before everybody has looked.
        trainer.strategy.barrier("shard_writer")
        trainer.predict_loop.return_predictions = False
        rank, ranks = trainer.global_rank, trainer.world_size
        self._queue = list(data.shards[rank::ranks])
        self._parts = []

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes the shard that the batch completes."""
        self._parts.append(move_data_to_device(outputs, torch.device("cpu")))
        shard = self._queue[0]
        positions = self._data.positions(shard)
        if int(batch.position_B[-1]) == positions[-1]:
            write_shard(self._folder, self._plan, shard, self._module.shard(self._parts, positions))
            self._parts = []
            self._queue.pop(0)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Writes the manifest, once all processes are done.

        Not on_predict_end, which a process does not come to that finds nothing left to encode.
        """
        trainer.strategy.barrier("shard_writer")
        if not trainer.is_global_zero:
            return
        if self._data.shards or not (self._folder / MANIFEST).exists():
            self._finish(trainer)
        self._release()

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lets SIGTERM end the process: Lightning's handler waits for a training loop, and shards are whole anyway."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Gives the folder up."""
        self._release()

    def _release(self) -> None:
        if self._claim is not None:
            self._claim.release()

    def _finish(self, trainer: L.Trainer) -> None:
        made = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "code": describe_code()._asdict(),
            "hardware": describe_hardware(trainer),
        }
        write_manifest(self._folder, self._plan, made)
        size = sum((self._folder / shard.file).stat().st_size for shard in self._plan.shards)
        print(
            f"{sum(self._plan.counts)} {self._data.unit}s in {len(self._plan.shards)} shards, {size / 1e9:.2f} GB: "
            f"{self._folder / MANIFEST}",
            flush=True,
        )


def missing_shards(folder: Path, plan: Plan) -> list[Shard]:
    """The shards of a plan that are not there yet.

    Raises:
        ValueError: naming one that is damaged or of another plan.
    """
    missing = []
    for shard in plan.shards:
        if (folder / shard.file).exists():
            read_shard(folder, plan, shard)
        else:
            missing.append(shard)
    return missing
