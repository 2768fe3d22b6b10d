"""Says which of a run's processes is gone, where the others stop because of it."""

import time
from pathlib import Path

import lightning as L
from filelock import FileLock, Timeout

from snapgen_pl.errors import is_told

_SECONDS = 5.0  # in which a process that failed comes to its end


class LostProcess(L.Callback):
    """Raises ConnectionError, naming ranks, where processes lost the connection to one that has ended.

    What a process learns of another's end is that a collective failed, and not whose. So each holds a lock on a file of
    its own in the run's folder, which all of them see; the system frees it however the process ends. A process that
    fails looks whose locks are free. (Where a backend waits instead of failing, torchrun or Lightning's launcher, which
    watch the processes, end them all and name the one.)
    """

    def __init__(self) -> None:
        self._own: FileLock | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes this process's lock, where there are several."""
        if trainer.world_size == 1:
            return
        self._own = _lock(trainer, trainer.global_rank)
        self._own.acquire()
        # From here on a free lock is that of a process which has ended.
        trainer.strategy.barrier("lost_process")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gives it up, once all are at their end."""
        if self._own is not None:
            trainer.strategy.barrier("lost_process")
            self._own.release()
            self._own = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Looks who is gone, where the exception does not speak for itself.

        Raises:
            ConnectionError: naming them.
        """
        if self._own is None or not isinstance(exception, RuntimeError) or is_told(exception):
            return
        if lost := _lost(trainer):
            ranks = " and ".join(f"rank {rank}" for rank in lost)
            raise ConnectionError(
                f"the process of {ranks} ended after step {trainer.global_step}, and this one, of rank "
                f"{trainer.global_rank}, does with it: see what it said last, or what its machine did to it (lack of "
                "memory kills without a word). The last checkpoint stands"
            ) from exception


def _lock(trainer: L.Trainer, rank: int) -> FileLock:
    return FileLock(Path(trainer.default_root_dir) / f".rank-{rank}.lock")


def _lost(trainer: L.Trainer) -> list[int]:
    """The ranks whose locks are free; waits a little for one to become so."""
    others = [rank for rank in range(trainer.world_size) if rank != trainer.global_rank]
    deadline = time.monotonic() + _SECONDS
    while True:
        lost = [rank for rank in others if _is_free(_lock(trainer, rank))]
        if lost or time.monotonic() > deadline:
            return lost
        time.sleep(0.1)


def _is_free(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    lock.release()
    return True
