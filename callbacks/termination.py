"""Ends a run in order when the machine is taken away: SIGTERM, or the first Ctrl-C."""

import os
import signal
import threading
from pathlib import Path
from types import FrameType

import lightning as L
from lightning.pytorch.utilities.types import STEP_OUTPUT

from callbacks.step_watch import StepWatch, any_due, steps_between_votes


class Termination(L.Callback):
    """Turns SIGTERM and SIGINT into a normal end of the run: finish the step, save, exit with code 0.

    The handlers only raise a flag. It is looked at after each optimizer step (never inside an accumulation, whose
    gradients no checkpoint holds), and :class:`~callbacks.checkpoint.LastCheckpoint` saves because the trainer then
    stops. A validation under way is finished first, none is begun. A second Ctrl-C interrupts at once.

    With several processes the flag of any of them stops all. They vote every 10 optimizer steps, since a vote makes the
    devices wait. Lightning's own handler broadcasts from inside the signal and can hang under DDP; while training runs,
    this one stands in its place.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._stopped = False
        self._watch = StepWatch()
        self._global_zero = True
        self._replaced: dict[signal.Signals, object] = {}
        self._limit_val_batches: int | float | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Installs the handlers."""
        self._received, self._stopped, self._global_zero = None, False, trainer.is_global_zero
        self._watch.start(trainer)
        # Python takes handlers in the main thread only; a trainer elsewhere is its host's to stop.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._replaced[number] = signal.signal(number, self._receive)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: STEP_OUTPUT,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Stops the run where a signal came in."""
        if self._stopped or not any_due(self._watch.new_steps(trainer), steps_between_votes(trainer)):
            return
        if trainer.strategy.reduce_boolean_decision(self._received is not None, all=False):
            self._stopped = True
            trainer.should_stop = True
            # Lightning validates once more before an early stop; there is no time for that now.
            self._limit_val_batches, trainer.limit_val_batches = trainer.limit_val_batches, 0

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Puts everything back."""
        self._restore(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Says how to go on, all having been saved."""
        if not (self._stopped and trainer.is_global_zero):
            return
        reason = self._received.name if self._received else "a signal to another process"
        path = getattr(trainer.checkpoint_callback, "last_model_path", "")
        how = f"Continue with the same command and --ckpt_path {Path(path)}" if path else "Nothing was saved"
        print(f"Stopped by {reason} after step {trainer.global_step}. {how}", flush=True)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Puts everything back."""
        self._restore(trainer)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._global_zero:
            # Not print: a handler may run in the middle of one.
            os.write(2, f"\n{self._received.name}: finishing this step, then saving\n".encode())

    def _restore(self, trainer: L.Trainer) -> None:
        for number, handler in self._replaced.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._replaced = {}
        if self._limit_val_batches is not None:
            trainer.limit_val_batches, self._limit_val_batches = self._limit_val_batches, None
