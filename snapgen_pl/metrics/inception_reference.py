"""What ImageNet metrics compare with: moments of all reference images, and the features of some."""

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from snapgen_pl.metrics.frechet import Moments
from snapgen_pl.metrics.image_sets import open_images
from snapgen_pl.whole_files import whole_file

_FORMAT = "snapgen-pl inception reference 1"
_ADM = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
# ADM's files do not say of how many images their moments are; nothing here depends on it.
_UNKNOWN = 0


@dataclass(frozen=True)
class InceptionReference:
    """The reference of FID, sFID, precision and recall.

    Attributes:
        pool: of FID.
        spatial: of sFID.
        features_ND: fp32, pooled, of precision and recall.
        network: SHA-256 of the Inception weights that made the features.
        source: SHA-256 of the files that it was made of; the features themselves differ in their last bits from one
            device to another. None of training images, which a report tells by their data.
    """

    pool: Moments
    spatial: Moments
    features_ND: Tensor
    network: str
    source: str | None

    def write(self, path: Path) -> None:
        """Writes safetensors, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = {"pool_count": str(self.pool.count), "spatial_count": str(self.spatial.count)}
        facts |= {"format": _FORMAT, "network": self.network, "source": self.source or ""}
        with whole_file(path) as part:
            save_file(self._tensors(), part, facts)

    def _tensors(self) -> dict[str, Tensor]:
        return {
            "features": self.features_ND,
            "pool_mean": self.pool.mean_D,
            "pool_covariance": self.pool.covariance_DD,
            "spatial_mean": self.spatial.mean_D,
            "spatial_covariance": self.spatial.covariance_DD,
        }


def read_reference(path: Path, network: str) -> InceptionReference:
    """A reference as written.

    Args:
        path: the file.
        network: SHA-256 of the weights that samples go through.

    Raises:
        ValueError: if it is no such file, or its features are of other weights.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            facts = opened.metadata() or {}
            if facts.get("format") != _FORMAT:
                raise ValueError(f"{path} is no reference of `python -m snapgen_pl reference`")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: missing or damaged ({error})") from error
    if facts["network"] != network:
        raise ValueError(
            f"{path} was made with other Inception weights ({facts['network'][:12]}) than the samples' "
            f"({network[:12]}); make it again with `python -m snapgen_pl reference`"
        )

    def moments(name: str) -> Moments:
        return Moments(tensors[f"{name}_mean"], tensors[f"{name}_covariance"], int(facts[f"{name}_count"]))

    return InceptionReference(
        moments("pool"), moments("spatial"), tensors["features"], network, facts["source"] or None
    )


def adm_moments(path: Path) -> dict[str, Moments] | None:
    """The moments ``pool`` and ``spatial`` of ADM's npz of statistics, in float64; None where it holds images alone.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = [name for pair in _ADM.values() for name in pair]
            if missing := [name for name in names if name not in arrays.files]:
                if len(missing) < len(names):
                    raise ValueError(f"it holds statistics, but no {', '.join(missing)}")
                return None
            return {
                kind: Moments(_float64(arrays[mean]), _float64(arrays[covariance]), _UNKNOWN)
                for kind, (mean, covariance) in _ADM.items()
            }
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: neither ADM's statistics nor images ({error}); fetch it again") from error


def _float64(array: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(array.astype(np.float64))


def source_digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's pictures in order."""
    digest = hashlib.sha256()
    for file in open_images(path).files:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
