"""FID, sFID, Inception Score, precision and recall: the ImageNet-256 protocol of ADM (Dhariwal and Nichol, 2021)."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from snapgen_pl.at_least import check_at_least
from snapgen_pl.metrics.feature_store import stored_features
from snapgen_pl.metrics.frechet import MomentSums, frechet_distance, moments_of
from snapgen_pl.metrics.image_sets import open_images
from snapgen_pl.metrics.inception import Inception
from snapgen_pl.metrics.inception_reference import (
    InceptionReference,
    adm_moments,
    read_reference,
    source_digest,
)
from snapgen_pl.metrics.inception_score import inception_score
from snapgen_pl.metrics.precision_recall import precision_recall
from snapgen_pl.metrics.sample_metric import Facts, FeatureSet, SampleMetric, Score, all_numbered, prepared

FULL = 50_000  # from so many images on, names do without their number, given the protocol's reference
_KINDS = ("pool", "spatial", "logits")


class InceptionMetrics(SampleMetric):
    """``fid``, ``sfid``, ``is``, ``precision`` and ``recall``; ``fid@N`` and so on where it is not the full protocol.

    The full protocol takes 50,000 images or more, and a reference that is brought.

    FID and sFID compare moments in float64, of pooled features and of the first 7 channels of ``mixed_6/conv``. The
    Inception Score is the mean over sequential tenths. Precision and recall (Kynkäänniemi et al., 2019) are of k = 3
    neighbours among pooled features, of at most ``manifold_references`` reference images and all samples.

    Args:
        weights: torch-fidelity's file of Inception weights.
        reference: ADM's npz of statistics (its images serve precision and recall), a folder of pictures, another npz
            of images, or what ``python -m snapgen_pl reference`` made of these. None takes training images.
        manifold_references: reference images of precision and recall, the first in the reference's order.
        splits: of the Inception Score.
        neighbours: k of precision and recall.
    """

    def __init__(
        self,
        weights: Path,
        reference: Path | None = None,
        manifold_references: int = 10_000,
        splits: int = 10,
        neighbours: int = 3,
    ) -> None:
        check_at_least(1, splits=splits, neighbours=neighbours)
        if manifold_references <= neighbours:
            raise ValueError(f"manifold_references is {manifold_references}; give more than neighbours, {neighbours}")
        self.weights, self.reference_path = weights, reference
        self.manifold_references, self.splits, self.neighbours = manifold_references, splits, neighbours
        self._network: Inception | None = None
        self._reference: InceptionReference | None = None
        self._device = torch.device("cpu")

    @property
    def network(self) -> str:
        """See the contract."""
        return "inception"

    @property
    def least_images(self) -> int:
        """A neighbourhood, and an image a split."""
        return max(self.neighbours + 1, self.splits)

    @property
    def brings_reference(self) -> bool:
        """Whether a file or folder was given."""
        return self.reference_path is not None

    @property
    def reference(self) -> InceptionReference:
        """What samples are compared with, once it is there."""
        if self._reference is None:
            raise ValueError("inception has no reference yet; call open_reference() or set_reference(features)")
        return self._reference

    def protocol(self) -> Facts:
        """Weights, settings and the reference's hash."""
        return {
            "features": "inception-v3-compat of torch-fidelity (TensorFlow, 2015-12-05)",
            "weights": self._loaded().digest,
            "reference": "training images" if self.reference_path is None else "brought",
            "reference_sha256": None if self._reference is None else self._reference.source,
            "manifold_references": self.manifold_references,
            "splits": self.splits,
            "neighbours": self.neighbours,
        }

    def prepare(self, device: torch.device) -> None:
        """Loads the network, and looks whether the reference can be read."""
        if self._network is None:
            self._network = Inception(self.weights)
        self._network.to(device)
        self._device = device
        if self.reference_path is not None and self.reference_path.suffix != ".safetensors":
            open_images(self.reference_path)

    def open_reference(self) -> None:
        """Reads it; pictures go through the network now."""
        if self._reference is None and self.reference_path is not None:
            self._reference = self._read(self.reference_path)

    def features(self, image_BCHW: Tensor, asked: Sequence[str] = ()) -> dict[str, Tensor]:
        """Pooled and spatial features, and logits."""
        values = self._loaded()(image_BCHW)
        return {f"{self.network}.{kind}": value for kind, value in zip(_KINDS, values, strict=True)}

    def set_reference(self, features: FeatureSet) -> None:
        """Moments of all, features of the first ``manifold_references``."""
        names = ("inception.pool", "inception.spatial")
        chunks = zip(*(features.read(name) for name in names), strict=True)
        self._reference = self._gathered((dict(zip(names, chunk, strict=True)) for chunk in chunks), None)

    def measure(self, features: FeatureSet) -> dict[str, Score]:
        """See the class."""
        reference = self.reference
        pooled_ND = torch.cat(list(features.read("inception.pool")))
        fid = frechet_distance(moments_of([pooled_ND]), reference.pool)
        sfid = frechet_distance(moments_of(features.read("inception.spatial")), reference.spatial)
        inception = inception_score(torch.cat(list(features.read("inception.logits"))), self.splits)
        manifold = precision_recall(
            reference.features_ND[: self.manifold_references].to(self._device),
            pooled_ND.to(self._device),
            self.neighbours,
        )
        scores = {
            "fid": Score(fid.value),
            "sfid": Score(sfid.value),
            "is": Score(inception.mean, inception.std),
            "precision": Score(manifold.precision),
            "recall": Score(manifold.recall),
            "clipped_eigenvalues": Score(float(fid.clipped + sfid.clipped)),
        }
        if features.count >= FULL and self.brings_reference:
            return scores
        return all_numbered(scores, features.count)

    def _read(self, path: Path) -> InceptionReference:
        network = self._loaded().digest
        if path.suffix == ".safetensors":
            return read_reference(path, network)
        images = open_images(path)
        moments = adm_moments(path) if path.suffix == ".npz" else None
        count = images.count if moments is None else min(images.count, self.manifold_references)
        gathered = self._gathered(stored_features(images, count, self.features, self._device), source_digest(path))
        return gathered if moments is None else replace(gathered, pool=moments["pool"], spatial=moments["spatial"])

    def _gathered(self, chunks: Iterator[dict[str, Tensor]], source: str | None) -> InceptionReference:
        """Moments of all features that come by, and the first pooled ones, in the memory of these alone."""
        pool, spatial = MomentSums(), MomentSums()
        kept: list[Tensor] = []
        room = self.manifold_references
        for chunk in chunks:
            pool.add(chunk["inception.pool"])
            spatial.add(chunk["inception.spatial"])
            kept.append(chunk["inception.pool"][:room].clone())
            room -= len(kept[-1])
        return InceptionReference(pool.moments(), spatial.moments(), torch.cat(kept), self._loaded().digest, source)

    def _loaded(self) -> Inception:
        return prepared(self._network, self.network)
