"""Images a second, and the share of the device's peak that they amount to."""

import time

import lightning as L
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import STEP_OUTPUT

from callbacks.step_watch import StepWatch
from snapgen_pl.models.count import TRAINING_FLOPS_A_MAC
from snapgen_pl.peak import dense_bf16_peak


class Throughput(L.Callback):
    """Logs ``train/images_seen``, ``train/images_per_second``, ``train/seconds`` and, if knowable, ``train/mfu``.

    Speed is that of all ranks together, between two logged steps (``log_every_n_steps``); seconds are those of the
    whole run, over its sessions, without what a killed one repeats. Time spent in validation, and in whatever samples
    images there, is not counted. MFU is 6 x multiply-adds an image x images a second over the dense
    bf16 peak of all devices. The module tells its multiply-adds in ``macs_per_image`` (forward; None: unknown).

    Args:
        peak_flops: dense bf16 FLOP/s of one device; by default what is known of it.
    """

    def __init__(self, peak_flops: float | None = None) -> None:
        if peak_flops is not None and peak_flops <= 0:
            raise ValueError(f"peak_flops must be positive, got {peak_flops}")
        self.peak_flops = peak_flops
        self._peak: float | None = None
        self._images = 0
        self._since = 0.0
        self._seconds = 0.0
        self._last_step = 0.0
        self._pause_began = 0.0
        self._watch = StepWatch()

    def state_dict(self) -> dict[str, float]:
        """The seconds trained so far."""
        return {"seconds": self._seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Takes up the count of seconds."""
        self._seconds = state_dict["seconds"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Looks up the peak; says so where MFU cannot be told."""
        self._images = int(pl_module.images_seen)  # type: ignore[arg-type]
        self._since = self._last_step = time.perf_counter()
        self._watch.start(trainer)
        self._peak = self.peak_flops or dense_bf16_peak(trainer.strategy.root_device)
        if self._peak is None:
            rank_zero_info(f"train/mfu is not logged: no known peak for {trainer.strategy.root_device}; set peak_flops")
        elif _macs(pl_module) is None:
            rank_zero_info(f"train/mfu is not logged: {type(pl_module).__name__} does not tell its macs_per_image")

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: STEP_OUTPUT,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Logs at the steps that are logged, once the optimizer stepped."""
        now = time.perf_counter()
        self._seconds += now - self._last_step
        self._last_step = now
        if not (self._watch.new_steps(trainer) and trainer._logger_connector.should_update_logs):
            return
        images = int(pl_module.images_seen)  # type: ignore[arg-type]
        speed = (images - self._images) / (now - self._since)
        self._images, self._since = images, now
        pl_module.log("train/images_seen", float(images))
        pl_module.log("train/seconds", self._seconds)
        pl_module.log("train/images_per_second", speed)
        macs = _macs(pl_module)
        if self._peak is not None and macs is not None:
            used = TRAINING_FLOPS_A_MAC * macs * speed
            pl_module.log("train/mfu", used / (self._peak * trainer.world_size))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stops the clock."""
        self._pause_began = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock again."""
        pause = time.perf_counter() - self._pause_began
        self._since += pause
        self._last_step += pause


def _macs(pl_module: L.LightningModule) -> int | None:
    macs = getattr(pl_module, "macs_per_image", None)
    return None if macs is None else int(macs)
