"""The verbs ``report`` and ``reference``: images on disk, measured, or made what others are measured against."""

import time
from pathlib import Path

import torch

from snapgen_pl.metrics.comparison import Comparison
from snapgen_pl.metrics.feature_store import MemoryFeatures, stored_features
from snapgen_pl.metrics.image_sets import open_images
from snapgen_pl.metrics.inception_metrics import InceptionMetrics
from snapgen_pl.metrics.sample_report import SampleReport, made


def report(samples: Path, reference: Path, weights: Path, out: Path, device: str | None = None) -> str:
    """Measures drawn images by the protocol of ImageNet-256.

    Args:
        samples: a folder of pictures, or ADM's npz.
        reference: ADM's npz of statistics, a folder of pictures, an npz of images, or a file of ``reference``.
        weights: torch-fidelity's file of Inception weights.
        out: the report, JSON.
        device: such as ``cuda``; by default a GPU, if there is one.

    Raises:
        ValueError: for what is missing, damaged or too few, before any image is looked at.
    """
    images = open_images(samples)
    comparison = Comparison([InceptionMetrics(weights, reference)])
    comparison.check_count("the number of samples", images.count)
    began = time.monotonic()
    where = _device(device)
    comparison.prepare(where)
    comparison.open_references()
    features = MemoryFeatures(images.count, list(stored_features(images, images.count, comparison.features, where)))
    result = SampleReport(
        model=samples.name,
        values=comparison.measure(features),
        controls={},
        measurement={"samples": images.count, "metrics": comparison.protocol()},
        drawing={"images": samples.name},
        weights={},
        seconds=round(time.monotonic() - began, 1),
        made=made(),
    )
    result.write(out)
    lines = [f"{name:24} {score.value:.4f}" for name, score in result.values.items()]
    return "\n".join([*lines, f"Written to {out}"])


def reference(images: Path, weights: Path, out: Path, device: str | None = None) -> str:
    """Takes the moments and features of a reference once, for many reports.

    Args:
        images: as ``reference`` of :func:`report`.
        weights: torch-fidelity's file of Inception weights.
        out: the file to make, ``.safetensors``.
        device: such as ``cuda``; by default a GPU, if there is one.

    Raises:
        ValueError: for what is missing or damaged.
    """
    if out.suffix != ".safetensors":
        raise ValueError(f"--out {out}: the file's name must end in .safetensors")
    metric = InceptionMetrics(weights, images)
    metric.prepare(_device(device))
    metric.open_reference()
    metric.reference.write(out)
    return f"The reference of {images} is in {out}"


def _device(name: str | None) -> torch.device:
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
