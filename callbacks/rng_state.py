"""Keeps the processes' random number generators in the checkpoint; Lightning does not."""

import random
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn

from snapgen_pl.processes import gather


class RngState(L.Callback):
    """Saves the global generators of torch (CPU and the process's GPU), numpy and Python, one state a rank.

    Timesteps, noise and augmentation do not depend on them (see :mod:`snapgen_pl.rng`); dropout inside a network does.
    Restored when training starts, not when the checkpoint is read, because what is set up in between draws numbers.
    """

    def __init__(self) -> None:
        self._states: list[dict[str, Any]] = []

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Gathers every rank's state."""
        checkpoint["rng"] = gather(_capture(pl_module.device), trainer.world_size)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keeps the states for the start of training.

        Raises:
            ValueError: where the checkpoint holds none.
        """
        if "rng" not in checkpoint:
            raise ValueError("the checkpoint holds no generators' states: it was written without callbacks.RngState")
        self._states = checkpoint["rng"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restores this rank's state."""
        states, self._states = self._states, []
        if not states:
            return
        if len(states) != trainer.world_size:
            rank_zero_warn(
                f"resuming a run of {len(states)} processes on {trainer.world_size}: dropout differs from the "
                "uninterrupted run; timesteps, noise and data do not"
            )
            return
        _restore(states[trainer.global_rank], pl_module.device)


def _capture(device: torch.device) -> dict[str, Any]:
    """The states in types that a weights_only load accepts."""
    # The legacy generator is the one that libraries draw from behind our back.
    name, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": (
            str(name),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ),
        "python": random.getstate(),
    }


def _restore(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    random.setstate(state["python"])
