import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning as L
import numpy as np
import pytest
import torch

from callbacks.rng_state import RngState
from tests.tiny_run import Tiny


def draws() -> tuple[float, float, float]:
    return torch.randn(()).item(), float(np.random.standard_normal()), random.gauss(0, 1)  # noqa: NPY002


def trainer(world_size: int = 1) -> L.Trainer:
    return cast(L.Trainer, SimpleNamespace(world_size=world_size, global_rank=0))


def test_all_generators_go_on_where_they_were_saved_through_a_file_of_plain_values(tmp_path: Path) -> None:
    draws()  # leaves numpy and python with half a pair of normal numbers in store
    checkpoint: dict[str, Any] = {}
    RngState().on_save_checkpoint(trainer(), Tiny(), checkpoint)
    expected = [draws() for _ in range(3)]
    torch.save(checkpoint, tmp_path / "state")
    callback = RngState()
    callback.on_load_checkpoint(trainer(), Tiny(), torch.load(tmp_path / "state", weights_only=True))
    L.seed_everything(5, verbose=False)
    callback.on_train_start(trainer(), Tiny())
    assert [draws() for _ in range(3)] == expected


def test_another_number_of_processes_is_told() -> None:
    checkpoint: dict[str, Any] = {}
    callback = RngState()
    callback.on_save_checkpoint(trainer(), Tiny(), checkpoint)
    callback.on_load_checkpoint(trainer(), Tiny(), checkpoint)
    with pytest.warns(UserWarning, match="a run of 1 processes on 2"):
        callback.on_train_start(trainer(world_size=2), Tiny())


def test_a_checkpoint_without_states_is_refused() -> None:
    with pytest.raises(ValueError, match=r"without callbacks\.RngState"):
        RngState().on_load_checkpoint(trainer(), Tiny(), {})
