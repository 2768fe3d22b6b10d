import importlib
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from snapgen_pl.data.emoji.vendored import Style, Vendored
from snapgen_pl.metrics.frechet import Moments, frechet_distance, moments_of
from snapgen_pl.metrics.inception import Inception, InceptionFeatures
from snapgen_pl.metrics.inception_score import inception_score
from snapgen_pl.metrics.precision_recall import precision_recall
from snapgen_pl.png import to_pil, write_png
from tests.metrics.fidelity import random_weights, torch_fidelity

BATCH = 10


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moments(features_ND: Tensor) -> Moments:
    return moments_of(features_ND.split(BATCH))


@pytest.mark.parametrize("width", [16, 400], ids=["regular", "singular"])
def test_metrics_of_the_same_features_are_theirs(width: int) -> None:
    torch_fidelity()
    fid, isc, prc = (importlib.import_module(f"torch_fidelity.metric_{name}") for name in ("fid", "isc", "prc"))
    samples_MD, reference_ND = 0.9 * normal(157, width, seed=0) + 0.5, normal(211, width, seed=1) + 0.4

    statistics = [fid.fid_features_to_statistics(features.double()) for features in (samples_MD, reference_ND)]
    distance = fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(moments(samples_MD), moments(reference_ND)).value == pytest.approx(distance, rel=1e-6)

    score = isc.isc_features_to_metric(samples_MD, splits=10, shuffle=False)
    expected = score["inception_score_mean"], score["inception_score_std"]
    assert inception_score(samples_MD) == pytest.approx(expected, rel=1e-12)

    shares = prc.calculate_precision_recall_full(samples_MD, reference_ND)
    assert 0 < shares[0] < 1
    assert precision_recall(reference_ND, samples_MD) == pytest.approx(shares, abs=1e-7)  # theirs are fp32
    assert precision_recall(reference_ND, samples_MD, k=5) != pytest.approx(shares, abs=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "splits"), [(8, 3), (300, 10)], ids=["8 images", "300 images"])
def test_metrics_of_two_folders_of_images_are_theirs(count: int, splits: int, tmp_path: Path) -> None:
    samples, reference = emoji("twemoji", count), emoji("noto", count)
    weights = random_weights(tmp_path / "weights.pth", reference[:8])
    theirs = torch_fidelity().calculate_metrics(
        input1=str(folder(tmp_path / "samples", samples)),
        input2=str(folder(tmp_path / "reference", reference)),
        cuda=False,
        batch_size=BATCH,
        isc=True,
        fid=True,
        prc=True,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(weights),
        isc_splits=splits,
        prc_neighborhood=3,
        samples_shuffle=False,
        save_cpu_ram=True,  # no worker processes
        cache=False,
        verbose=False,
    )
    ours, real = (features(Inception(weights), images) for images in (samples, reference))
    assert ours.pool_BD.std(dim=0).mean() > 0.1

    distance = frechet_distance(moments(ours.pool_BD), moments(real.pool_BD)).value
    assert distance > 1
    exact = by_features(ours.pool_BD, real.pool_BD)
    assert distance == pytest.approx(exact, rel=1e-8)
    # Their roots of eigenvalues of S T add up rounding errors where covariances are singular.
    assert distance == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)

    score = inception_score(ours.logits_BK, splits)
    assert score.mean > 1.01
    expected = theirs["inception_score_mean"], theirs["inception_score_std"]
    assert score == pytest.approx(expected, rel=1e-6)

    shares = precision_recall(real.pool_BD, ours.pool_BD)
    assert shares != (0, 0)
    assert shares != (1, 1)
    assert shares == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-7)  # theirs are fp32


def by_features(a_ND: Tensor, b_MD: Tensor) -> float:
    """The Frechet distance without a covariance: where S = A^T A and T = B^T B, tr (S T)^1/2 = sum of sv(A B^T)."""
    a_ND, b_MD = a_ND.double(), b_MD.double()
    a, b = ((x - x.mean(dim=0)) / math.sqrt(len(x) - 1) for x in (a_ND, b_MD))
    squared = (a_ND.mean(dim=0) - b_MD.mean(dim=0)).square().sum()
    return float(squared + a.square().sum() + b.square().sum() - 2 * torch.linalg.svdvals(a @ b.T).sum())


def emoji(style: Style, count: int) -> Tensor:
    """From all over the sheet: neighbours there are alike."""
    return Vendored().images(style, 1400)[:: 1400 // count][:count].permute(0, 3, 1, 2).contiguous()


def folder(path: Path, image_BCHW: Tensor) -> Path:
    """The images as files whose names sort in their order."""
    path.mkdir()
    for i, image_CHW in enumerate(image_BCHW):
        write_png(to_pil(image_CHW), path / f"{i:04}.png")
    return path


def features(inception: Inception, image_BCHW: Tensor) -> InceptionFeatures:
    batches = [inception(batch) for batch in image_BCHW.split(BATCH)]
    return InceptionFeatures(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
