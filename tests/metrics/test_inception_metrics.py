"""From images on disk to a report, with weights that are random but of the true key names."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from snapgen_pl.data.emoji.vendored import Style, Vendored
from snapgen_pl.metrics.feature_store import MemoryFeatures
from snapgen_pl.metrics.frechet import moments_of
from snapgen_pl.metrics.image_sets import write_npz, write_pictures
from snapgen_pl.metrics.inception_metrics import InceptionMetrics
from snapgen_pl.metrics.inception_reference import InceptionReference
from snapgen_pl.metrics.inception_score import inception_score
from snapgen_pl.metrics.precision_recall import precision_recall
from snapgen_pl.metrics.sample_report import read_report
from snapgen_pl.metrics.stored_images import reference, report
from tests.metrics.fidelity import random_weights
from tests.metrics.test_against_torch_fidelity import by_features

CPU = torch.device("cpu")
COUNT = 12


def emoji(style: Style) -> Tensor:
    return Vendored().images(style, 1400)[:: 1400 // COUNT][:COUNT].permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_weights(tmp_path_factory.mktemp("inception") / "weights.pth", emoji("noto")[:8])


@pytest.fixture(scope="module")
def metric(weights: Path) -> InceptionMetrics:
    prepared = InceptionMetrics(weights, splits=3)
    prepared.prepare(CPU)
    return prepared


@pytest.fixture(scope="module")
def real(metric: InceptionMetrics) -> MemoryFeatures:
    return features(metric, emoji("noto"))


@pytest.fixture(scope="module")
def drawn(metric: InceptionMetrics) -> MemoryFeatures:
    return features(metric, emoji("twemoji"))


def features(metric: InceptionMetrics, image_BCHW: Tensor) -> MemoryFeatures:
    return MemoryFeatures(len(image_BCHW), [metric.features(batch) for batch in image_BCHW.split(10)])


def assert_same(found: InceptionReference, expected: InceptionReference, tolerance: float = 1e-4) -> None:
    for ours, theirs in ((found.pool, expected.pool), (found.spatial, expected.spatial)):
        torch.testing.assert_close(ours.mean_D, theirs.mean_D, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(ours.covariance_DD, theirs.covariance_DD, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found.features_ND, expected.features_ND, rtol=tolerance, atol=tolerance)


def adm(path: Path, image_BCHW: Tensor, real: MemoryFeatures) -> Path:
    """Statistics as ADM's files have them: fp32 here and there, images beside."""
    pool, spatial = (moments_of(real.read(f"inception.{kind}")) for kind in ("pool", "spatial"))
    np.savez(
        path,
        arr_0=image_BCHW.permute(0, 2, 3, 1).numpy(),
        mu=pool.mean_D.float().numpy(),
        sigma=pool.covariance_DD.numpy(),
        mu_s=spatial.mean_D.numpy(),
        sigma_s=spatial.covariance_DD.numpy(),
    )
    return path


def test_adms_file_a_folder_and_a_file_made_of_either_are_one_reference(
    metric: InceptionMetrics, weights: Path, real: MemoryFeatures, tmp_path: Path
) -> None:
    metric.set_reference(real)
    expected = metric.reference
    write_pictures(tmp_path / "folder", [emoji("noto")])
    write_npz(tmp_path / "images.npz", COUNT, [emoji("noto")])
    npz = adm(tmp_path / "adm.npz", emoji("noto"), real)
    for source in (tmp_path / "folder", tmp_path / "images.npz", npz):
        other = InceptionMetrics(weights, source, splits=3)
        other.prepare(CPU)
        other.open_reference()
        assert_same(other.reference, expected)  # batches of other sizes, and ADM's fp32 mean
    reference(npz, weights, tmp_path / "made" / "reference.safetensors", device="cpu")
    cached = InceptionMetrics(weights, tmp_path / "made" / "reference.safetensors", splits=3)
    cached.prepare(CPU)
    cached.open_reference()
    assert_same(cached.reference, other.reference, tolerance=0)
    assert cached.protocol()["reference_sha256"] == other.protocol()["reference_sha256"]
    assert cached.protocol()["reference_sha256"] != metric.protocol()["reference_sha256"]


def test_precision_and_recall_take_the_first_so_many_references_and_moments_all(
    weights: Path, real: MemoryFeatures
) -> None:
    few = InceptionMetrics(weights, manifold_references=10)
    few.prepare(CPU)
    few.set_reference(real)
    pooled = torch.cat(list(real.read("inception.pool")))
    assert torch.equal(few.reference.features_ND, pooled[:10])
    assert few.reference.pool.count == COUNT
    assert few.protocol()["manifold_references"] == 10


@pytest.mark.slow
def test_images_on_disk_are_reported_by_name_value_and_protocol(
    weights: Path, metric: InceptionMetrics, real: MemoryFeatures, drawn: MemoryFeatures, tmp_path: Path
) -> None:
    write_npz(tmp_path / "samples.npz", COUNT, [emoji("twemoji")])
    write_pictures(tmp_path / "real", [emoji("noto")])
    text = report(tmp_path / "samples.npz", tmp_path / "real", weights, tmp_path / "report.json", device="cpu")
    found = read_report(tmp_path / "report.json")
    names = ("fid", "sfid", "is", "precision", "recall", "clipped_eigenvalues")
    assert list(found.values) == [f"{name}@{COUNT}" for name in names]
    values = {name: found.values[f"{name}@{COUNT}"].value for name in names}

    pool, spatial, logits = (
        tuple(torch.cat(list(side.read(f"inception.{kind}"))) for side in (drawn, real))
        for kind in ("pool", "spatial", "logits")
    )
    expected = {"fid": by_features(*pool), "sfid": by_features(*spatial), "is": inception_score(logits[0]).mean}
    # Batches of another size.
    assert {name: values[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert (values["precision"], values["recall"]) == precision_recall(pool[1], pool[0])
    assert f"{values['fid']:.4f}" in text

    protocol = found.measurement["metrics"]["inception"]  # type: ignore[index]
    assert found.measurement["samples"] == COUNT
    assert protocol["weights"] == metric.protocol()["weights"]
    assert protocol["reference_sha256"]


def test_what_cannot_be_measured_is_refused_before_an_image_is_looked_at(weights: Path, tmp_path: Path) -> None:
    write_npz(tmp_path / "few.npz", 5, [emoji("noto")[:5]])
    with pytest.raises(ValueError, match="number of samples is 5, too few for inception, which takes 10"):
        report(tmp_path / "few.npz", tmp_path / "few.npz", weights, tmp_path / "a.json")
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        reference(tmp_path / "few.npz", weights, tmp_path / "a.npz")
    (tmp_path / "damaged.safetensors").write_bytes(b"no tensors")
    broken = InceptionMetrics(weights, tmp_path / "damaged.safetensors")
    broken.prepare(CPU)
    with pytest.raises(ValueError, match=r"damaged\.safetensors: missing or damaged"):
        broken.open_reference()
    np.savez(tmp_path / "half.npz", mu=np.zeros(2048), sigma=np.eye(2048), arr_0=np.zeros((12, 4, 4, 3), np.uint8))
    half = InceptionMetrics(weights, tmp_path / "half.npz")
    half.prepare(CPU)
    with pytest.raises(ValueError, match="it holds statistics, but no mu_s, sigma_s"):
        half.open_reference()
    with pytest.raises(ValueError, match="manifold_references is 3"):
        InceptionMetrics(weights, manifold_references=3)


def test_a_reference_of_other_weights_is_refused(weights: Path, tmp_path: Path, metric: InceptionMetrics) -> None:
    metric.set_reference(features(metric, emoji("noto")[:12]))
    metric.reference.write(tmp_path / "a.safetensors")
    other = random_weights(tmp_path / "other.pth", emoji("fluent-flat")[:8])
    foreign = InceptionMetrics(other, tmp_path / "a.safetensors")
    foreign.prepare(CPU)
    with pytest.raises(ValueError, match="made with other Inception weights"):
        foreign.open_reference()


ADM_SAMPLES = os.environ.get("SNAPGEN_ADM_SAMPLES")
ADM_REFERENCE = os.environ.get("SNAPGEN_ADM_REFERENCE")
INCEPTION = os.environ.get("SNAPGEN_INCEPTION")


@pytest.mark.skipif(
    not (ADM_SAMPLES and ADM_REFERENCE and INCEPTION),
    reason="THE PUBLISHED FIGURES OF ADM-U ARE NOT CHECKED: set SNAPGEN_ADM_SAMPLES to ADM's npz of samples, "
    "SNAPGEN_ADM_REFERENCE to VIRTUAL_imagenet256_labeled.npz, SNAPGEN_INCEPTION to torch-fidelity's weights",
)
def test_adms_published_samples_have_the_published_figures(tmp_path: Path) -> None:
    samples, statistics, inception = (Path(str(name)) for name in (ADM_SAMPLES, ADM_REFERENCE, INCEPTION))
    report(samples, statistics, inception, tmp_path / "report.json")
    found = read_report(tmp_path / "report.json").values
    published = {"fid": 3.9426, "sfid": 6.1404, "is": 215.84, "precision": 0.8265, "recall": 0.5309}
    assert {name: found[name].value for name in published} == pytest.approx(published, rel=2e-3)
