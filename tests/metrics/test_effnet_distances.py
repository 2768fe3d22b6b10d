import pytest
import torch
from torch import Tensor

from snapgen_pl.data.emoji.vendored import Vendored
from snapgen_pl.metrics.controls import reduced
from snapgen_pl.metrics.efficientnet import EfficientNetLite0
from snapgen_pl.metrics.effnet_distances import EffNetDistances
from snapgen_pl.metrics.feature_store import MemoryFeatures

CPU = torch.device("cpu")


def emoji(count: int) -> Tensor:
    return Vendored().images("noto", count).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="module")
def prepared() -> EffNetDistances:
    """References: every other emoji."""
    metric = EffNetDistances(subsets=10, subset_size=100)
    metric.prepare(CPU)
    metric.set_reference(features(metric, emoji(300)[::2]))
    return metric


def features(metric: EffNetDistances, images: Tensor) -> MemoryFeatures:
    return MemoryFeatures(len(images), [metric.features(batch) for batch in images.split(50)])


def distance(metric: EffNetDistances, images: Tensor) -> float:
    return metric.measure(features(metric, images))["kid_effnet"].value


def test_the_worse_images_are_the_larger_the_distance(prepared: EffNetDistances) -> None:
    images = emoji(300)[1::2]
    noise = torch.randint(0, 256, images.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    values = [distance(prepared, batch) for batch in (images, reduced(images, 16), reduced(images, 8), noise)]
    assert abs(values[0]) < 0.5
    assert values == sorted(values)
    assert values[1] > 1 < values[3]


def test_the_subsets_are_drawn_from_its_own_seed_and_not_from_the_global_state(prepared: EffNetDistances) -> None:
    images = emoji(300)[1::2]
    before = torch.get_rng_state()
    first = distance(prepared, images)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert distance(prepared, images) == first


def test_the_value_is_the_unbiased_mmd_of_the_cubic_kernel() -> None:
    """With subsets as large as the sets, every subset is the whole set: one U-statistic, written out here in fp64."""
    a, b = emoji(60)[:30], reduced(emoji(60)[30:], 16)
    metric = EffNetDistances(subsets=2, subset_size=30)
    metric.prepare(CPU)
    metric.set_reference(features(metric, a))
    value = distance(metric, b)

    network = EfficientNetLite0(64)
    x, y = network(a).double(), network(b).double()

    def kernel(p: Tensor, q: Tensor) -> Tensor:
        return (p @ q.T / 1280 + 1) ** 3

    off_diagonal = ~torch.eye(30, dtype=torch.bool)
    expected = kernel(x, x)[off_diagonal].mean() + kernel(y, y)[off_diagonal].mean() - 2 * kernel(x, y).mean()
    assert value == pytest.approx(float(expected), abs=1e-4)


def test_too_few_images_are_refused_with_a_remedy(prepared: EffNetDistances) -> None:
    with pytest.raises(ValueError, match="subsets of 100 images, and one of the sets holds fewer; draw more"):
        distance(prepared, emoji(10))


def test_the_frechet_distance_is_given_from_2500_images_on_and_names_their_number() -> None:
    def gaussian(seed: int, mean: float, count: int) -> MemoryFeatures:
        drawn = torch.randn(count, 1280, generator=torch.Generator().manual_seed(seed)) / 1280**0.5
        return MemoryFeatures(count, [{"effnet": drawn + mean}])

    metric = EffNetDistances(subsets=1, subset_size=100)
    metric.set_reference(gaussian(0, 0, 2_600))
    assert set(metric.measure(gaussian(1, 0, 2_499))) == {"kid_effnet"}
    near, far = (metric.measure(gaussian(1, mean, 2_500))["fd_effnet@2500"].value for mean in (0, 0.1))
    # The means' part; what 2,500 images leave of the covariances' is in both.
    assert far - near == pytest.approx(0.01 * 1280, rel=0.05)


def test_another_input_size_is_another_metric_by_name() -> None:
    assert EffNetDistances().network == "effnet"
    assert EffNetDistances(input_size=128).network == "effnet_128px"
    larger = EffNetDistances(input_size=128)
    with pytest.raises(ValueError, match="effnet_128px is not prepared"):
        larger.protocol()
    larger.prepare(CPU)
    assert larger.protocol()["input_size"] == 128
