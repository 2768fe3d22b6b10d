"""The weights of a network as diffusers saves them: safetensors in one file, or in several with an index."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from snapgen_pl.asked_size import check_size_by_files
from snapgen_pl.weights_index import indexed_files

_WHOLE, _INDEX = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json"
# What to ask the hub for.
WEIGHTS = (_WHOLE, _INDEX, "diffusion_pytorch_model-*-of-*.safetensors")


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors by name, as stored. They are mapped, not read: the processes of a machine share one copy.

    Args:
        folder: the network's.

    Raises:
        ValueError: where a file is missing or damaged. Pickled weights are not read.
    """
    tensors: dict[str, Tensor] = {}
    for file in _files(folder):
        if not file.is_file():
            raise ValueError(f"no {file.name} in {folder}; download it there (pickled .bin weights are not read)")
        try:
            tensors |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is damaged ({error}); download it again") from error
    return tensors


def check_diffusers_size(kind: Any, folder: Path, pattern: str = "*.safetensors") -> None:
    """Refuses a network of diffusers that is larger than the weights in its folder.

    Args:
        kind: its class.
        folder: the network's.
        pattern: of the names of files of weights.

    Raises:
        ValueError: where it is too large, naming config.json.
    """
    check_size_by_files(lambda: kind.from_config(kind.load_config(folder)), folder / "config.json", pattern)


def _files(folder: Path) -> Sequence[Path]:
    index = folder / _INDEX
    if not index.is_file():
        return [folder / _WHOLE]
    return [folder / name for name in indexed_files(index)]
