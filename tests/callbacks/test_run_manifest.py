import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from callbacks.run_manifest import RunManifest
from snapgen_pl.checkpoints import LAST
from snapgen_pl.data.source import OpenSource
from tests import tiny_run
from tests.tiny_run import Stream, Tiny


class Labels:
    """As much of an image set as a manifest reads."""

    labels = torch.zeros(5, dtype=torch.int64)

    def __len__(self) -> int:
        return 5

    def load(self, index: int) -> Any:
        raise AssertionError("a manifest reads no images")


class Data(L.LightningDataModule):
    def __init__(self, fingerprint: str = "abc", classes: tuple[str, ...] = ("cat", "dog")) -> None:
        super().__init__()
        self.source = OpenSource(classes, Labels(), Labels(), fingerprint)

    def train_dataloader(self) -> Any:
        return Stream(6)

    def val_dataloader(self) -> Any:
        return Stream(6)


def fit(folder: Path, steps: int, data: Data | None = None, resume: bool = False) -> list[dict[str, Any]]:
    trainer = tiny_run.trainer_for(folder, steps, callbacks=[RunManifest()])
    trainer.fit(Tiny(seed=7), datamodule=data or Data(), ckpt_path=folder / LAST if resume else None)
    starts: list[dict[str, Any]] = json.loads((folder / "manifest.json").read_text())["starts"]
    return starts


def test_every_start_is_written_down_and_a_new_run_begins_anew(tmp_path: Path) -> None:
    fit(tmp_path, 2)
    first, second = fit(tmp_path, 4, resume=True)
    assert (first["step"], second["step"]) == (0, 2)
    assert second["checkpoint"] == str(tmp_path / LAST)
    assert first["seed"] == 7
    assert first["parameters"] == sum(p.numel() for p in Tiny().parameters())
    assert first["data"] == {
        "fingerprint": "abc",
        "classes": ["cat", "dog"],
        "training_images": 5,
        "validation_images": 5,
    }
    assert first["packages"]["torch"] == torch.__version__
    assert len(first["code"]["commit"]) == 40
    assert isinstance(first["code"]["dirty"], bool)
    assert len(fit(tmp_path, 2)) == 1


def test_resuming_with_other_classes_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, 2)
    with pytest.raises(ValueError, match="labels would mean something else"):
        fit(tmp_path, 4, Data("def", ("dog", "cat")), resume=True)


def test_resuming_with_other_images_is_told(tmp_path: Path) -> None:
    fit(tmp_path, 2)
    with pytest.warns(UserWarning, match="abc -> def"):
        fit(tmp_path, 4, Data("def"), resume=True)
