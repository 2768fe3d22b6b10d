"""One checkpoint a run, always whole on disk: ``last.ckpt``, and the one before it as ``previous.ckpt``."""

import os
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.types import STEP_OUTPUT

from callbacks.step_watch import StepWatch, any_due, steps_between_votes
from snapgen_pl.checkpoints import LAST, PREVIOUS, newest, read
from snapgen_pl.whole_files import whole_file


class AtomicCheckpointIO(CheckpointIO):
    """Writes checkpoints so that a kill or a full disk at any moment leaves a whole one. A ``trainer.plugins`` entry.

    The bytes go to ``<name>.part`` beside the target and to the disk (fsync) before any name changes. Overwriting
    ``last.ckpt`` first renames it to ``previous.ckpt``; between the two renames only the latter exists.
    Reading is always restricted to tensors and plain values (``weights_only``).
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: object | None = None
    ) -> None:
        """Writes a checkpoint; the target holds either what it held before or all of the new one.

        Raises:
            ValueError: for storage options, of which there are none.
            OSError: for a full disk and the like, saying what stands: older checkpoints are untouched, and the part
                file is removed.
        """
        if storage_options is not None:
            raise ValueError(f"storage_options are not supported, got {storage_options!r}")
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(target) as part:
                _write(checkpoint, part)
                if target.name == LAST and target.exists():
                    target.replace(target.with_name(PREVIOUS))
            _sync_folder(target.parent)
        except OSError as error:
            stands = next((path for path in (target, target.with_name(PREVIOUS)) if path.exists()), None)
            kept = f"{stands} stands: mend that, then resume from it" if stands else "nothing was saved before"
            raise OSError(f"{target} could not be written ({error.strerror or error}); {kept}") from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a checkpoint onto the CPU (or where ``map_location`` says).

        Raises:
            FileNotFoundError: where there is no file.
            ValueError: as :func:`snapgen_pl.checkpoints.read`; where ``weights_only`` is False.
        """
        if weights_only is False:
            raise ValueError("checkpoints hold tensors and plain values only: leave weights_only out")
        # Not in the file's map: optimizers change in place what they are given.
        return read(Path(path), mmap=False, map_location=map_location or "cpu")

    def remove_checkpoint(self, path: str | Path) -> None:
        """Deletes a checkpoint."""
        Path(path).unlink(missing_ok=True)


class LastCheckpoint(ModelCheckpoint):
    """Keeps ``last.ckpt`` in the run's folder (the trainer's ``default_root_dir``) up to date.

    Saves when the optimizer steps meet or pass a multiple of the cadence, when so many minutes have passed, after the
    last step, and when something stops the run; always right after an optimizer step, since half-accumulated gradients
    are in no checkpoint. The cadence is not part of the saved state, so a run may be resumed with another one.

    Args:
        every_n_steps: optimizer steps between two saves; null counts none.
        every_minutes: minutes between two saves, by the first process's clock; null keeps to the steps. Long runs want
            it: what a kill costs, and the share of time that saving takes, are then the same on any hardware.

    Raises:
        ValueError: for numbers that are not positive, or where both are null.
    """

    def __init__(self, every_n_steps: int | None = 1000, every_minutes: float | None = None) -> None:
        if every_n_steps is None and every_minutes is None:
            raise ValueError("every_n_steps and every_minutes are both null; give one, or a kill would cost all")
        if (every_n_steps is not None and every_n_steps < 1) or (every_minutes is not None and not every_minutes > 0):
            raise ValueError(
                f"every_n_steps must be at least 1 and every_minutes above 0, got {every_n_steps} and {every_minutes}"
            )
        super().__init__(save_top_k=0, save_last=True, every_n_train_steps=1, enable_version_counter=False)
        self.every_n_steps, self.every_minutes = every_n_steps, every_minutes
        self._watch = StepWatch()
        self._saved_at = 0.0

    @property
    def state_key(self) -> str:
        """The same whatever the cadence."""
        return type(self).__qualname__

    def state_dict(self) -> dict[str, Any]:
        """Nothing: names and cadence are configuration, and a run folder may be moved."""
        return {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Puts checkpoints straight into the run's folder."""
        self.dirpath = str(trainer.default_root_dir)
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What a resumed run starts from is already saved."""
        super().on_train_start(trainer, pl_module)
        self._last_global_step_saved = trainer.global_step
        self._watch.start(trainer)
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: STEP_OUTPUT,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Saves where the cadence is met or the run is about to end."""
        steps = self._watch.new_steps(trainer)
        # A negative max_steps means no limit.
        ending = trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step
        if steps and (ending or self._due(trainer, steps)):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nothing: the cadence counts steps."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nothing: the cadence counts steps."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves what the batches' ends could not know was the end, such as a last epoch."""
        self._save(trainer)

    def _due(self, trainer: L.Trainer, steps: range) -> bool:
        if self.every_n_steps is not None and any_due(steps, self.every_n_steps):
            return True
        if self.every_minutes is None or not any_due(steps, steps_between_votes(trainer)):
            return False
        late = trainer.is_global_zero and time.monotonic() - self._saved_at >= 60 * self.every_minutes
        return trainer.strategy.reduce_boolean_decision(late, all=False)

    def _save(self, trainer: L.Trainer) -> None:
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
            self._saved_at = time.monotonic()

    def _find_last_checkpoints(self, trainer: L.Trainer) -> set[str]:
        """What ``ckpt_path="last"`` means. Lightning's own warns and starts from scratch where nothing is found."""
        return {str(newest(Path(trainer.default_root_dir)))}


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:
            # What the file system said is covered by torch's writer, which only sees that bytes are missing.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Makes the renames in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
