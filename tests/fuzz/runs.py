"""What lies in a run's folder: checkpoints, manifests, configurations; and weights of others."""

import pickle
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from callbacks.checkpoint import AtomicCheckpointIO
from snapgen_pl.checkpoints import LAST, read, step_of
from snapgen_pl.config_files import check_config, load_config, locate
from snapgen_pl.metrics.array_pickle import read_arrays
from snapgen_pl.runs import Run
from snapgen_pl.trained_run import TrainedRun
from snapgen_pl.whole_files import write_json
from tests.fuzz.target import Target, answer

CHECKPOINT = {
    "global_step": 7,
    "images_seen": 56,
    "state_dict": {"denoiser.weight": torch.arange(40.0), "conditioner.weight": torch.ones(3)},
    "ema": {"weights": {"denoiser.weight": torch.arange(40.0) / 2}},
    "config": "name: tiny\n",
}
START = {
    "step": 0,
    "seed": 7,
    "data": {"fingerprint": "abc", "classes": ["cat", "dog"], "training_images": 5, "validation_images": 5},
    "teacher": None,
}
CONFIG = """\
seed: 7
model: &model
  class_path: snapgen_pl.modules.pretrain.Pretrain
  init_args: {size: 16, rate: 1e-4, stages: [1, null, true, 2020-01-01]}
again: *model
"""
PICKLE, ARRAYS = "data.pkl", "arrays.ckpt"


def write_checkpoint(folder: Path) -> None:
    AtomicCheckpointIO().save_checkpoint(CHECKPOINT, folder / LAST)


def read_checkpoint(folder: Path) -> dict[str, Any]:
    assert step_of(folder / LAST) >= 0
    return read(folder / LAST)


def pickled(content: object) -> bytes:
    """The pickle in a checkpoint."""
    file = BytesIO()
    torch.save(content, file)
    with zipfile.ZipFile(file) as archive:
        return archive.read("archive/data.pkl")


def write_pickle(folder: Path) -> None:
    """A checkpoint, and its pickle as a file of its own: within, only a stranger could change it and its checksum."""
    write_checkpoint(folder)
    (folder / PICKLE).write_bytes(pickled(CHECKPOINT))


def read_pickle(folder: Path) -> None:
    path = folder / "packed.ckpt"
    path.unlink(missing_ok=True)  # as in Damaged
    with zipfile.ZipFile(folder / LAST) as whole, zipfile.ZipFile(path, "w") as archive:
        for name in whole.namelist():
            archive.writestr(name, (folder / PICKLE).read_bytes() if name.endswith(PICKLE) else whole.read(name))
    run = TrainedRun(folder, {}, path)
    answer(
        lambda: step_of(path) >= 0,
        lambda: run.images_seen >= 0,
        lambda: all(isinstance(weight, torch.Tensor) for weight in run.weights().values()),
    )


def write_manifest(folder: Path) -> None:
    write_json({"starts": [START, START]}, Run(folder).manifest)


def read_manifest(folder: Path) -> None:
    assert Run(folder).starts()
    assert all(isinstance(name, str) for name in TrainedRun(folder, {}, folder / LAST).classes())


def write_config(folder: Path) -> None:
    Run(folder).config.write_text(CONFIG, encoding="utf-8")


def read_config(folder: Path) -> None:
    path = Run(folder).config
    answer(
        lambda: isinstance(load_config(path), dict),
        lambda: check_config(path),
        lambda: locate(path, "a") is None or b"a" in path.read_bytes(),
    )


def write_arrays(folder: Path) -> None:
    content = {"conv": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "bias": np.ones(3, np.float32)}
    (folder / ARRAYS).write_bytes(pickle.dumps(content))


def read_array_pickle(folder: Path) -> None:
    assert all(tensor.dtype == torch.float32 for tensor in read_arrays(folder / ARRAYS).values())


TARGETS = {
    "checkpoint": Target(write_checkpoint, LAST, read_checkpoint, sealed=True),
    "checkpoint_pickle": Target(write_pickle, PICKLE, read_pickle),
    "run_manifest": Target(write_manifest, "manifest.json", read_manifest),
    "run_config": Target(write_config, "config.yaml", read_config),
    "arrays": Target(write_arrays, ARRAYS, read_array_pickle),
}
