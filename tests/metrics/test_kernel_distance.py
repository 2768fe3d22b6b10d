import pytest
import torch
from torch import Tensor

from snapgen_pl.data.emoji.vendored import Vendored
from snapgen_pl.metrics.controls import reduced
from snapgen_pl.metrics.efficientnet import EfficientNetLite0
from snapgen_pl.metrics.kernel_distance import KernelDistance

CPU = torch.device("cpu")


def emoji(count: int) -> Tensor:
    return Vendored().images("noto", count).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="module")
def prepared() -> KernelDistance:
    """References: every other emoji."""
    metric = KernelDistance(subsets=10, subset_size=100)
    metric.prepare(CPU)
    metric.add_reference(emoji(300)[::2])
    return metric


def distance(metric: KernelDistance, images: Tensor) -> float:
    for batch in images.split(50):
        metric.add(batch)
    score = metric.compute()
    metric.clear()
    return score.value


def test_the_worse_images_are_the_larger_the_distance(prepared: KernelDistance) -> None:
    images = emoji(300)[1::2]
    noise = torch.randint(0, 256, images.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    values = [distance(prepared, batch) for batch in (images, reduced(images, 16), reduced(images, 8), noise)]
    assert abs(values[0]) < 0.5
    assert values == sorted(values)
    assert values[1] > 1 < values[3]


def test_the_subsets_are_drawn_from_its_own_seed_and_not_from_the_global_state(prepared: KernelDistance) -> None:
    images = emoji(300)[1::2]
    before = torch.get_rng_state()
    first = distance(prepared, images)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert distance(prepared, images) == first


def test_the_value_is_the_unbiased_mmd_of_the_cubic_kernel() -> None:
    """With subsets as large as the sets, every subset is the whole set: one U-statistic, written out here in fp64."""
    a, b = emoji(60)[:30], reduced(emoji(60)[30:], 16)
    metric = KernelDistance(subsets=2, subset_size=30)
    metric.prepare(CPU)
    metric.add_reference(a)
    value = distance(metric, b)

    network = EfficientNetLite0(64)
    x, y = network(a).double(), network(b).double()

    def kernel(p: Tensor, q: Tensor) -> Tensor:
        return (p @ q.T / 1280 + 1) ** 3

    off_diagonal = ~torch.eye(30, dtype=torch.bool)
    expected = kernel(x, x)[off_diagonal].mean() + kernel(y, y)[off_diagonal].mean() - 2 * kernel(x, y).mean()
    assert value == pytest.approx(float(expected), abs=1e-4)


def test_clearing_forgets_the_samples_and_keeps_the_reference(prepared: KernelDistance) -> None:
    images = emoji(300)[1::2]
    clean = distance(prepared, images)
    distance(prepared, reduced(images, 8))
    assert distance(prepared, images) == clean


def test_too_few_images_are_refused_with_a_remedy(prepared: KernelDistance) -> None:
    prepared.add(emoji(10))
    with pytest.raises(ValueError, match="subsets of 100 images, and one of the sets holds fewer; draw more"):
        prepared.compute()
    prepared.clear()


def test_another_input_size_is_another_metric_by_name() -> None:
    assert KernelDistance().name == "kid_effnet"
    assert KernelDistance(input_size=128).name == "kid_effnet_128px"
    assert KernelDistance(input_size=128).protocol()["input_size"] == 128
