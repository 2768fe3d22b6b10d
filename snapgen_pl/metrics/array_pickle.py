"""Pickles of numpy arrays in dictionaries, read without running anything else that they name."""

import pickle
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# What numpy's pickles call to make an array; numpy 2 moved it.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ALLOWED: dict[tuple[str, str], object] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


def read_arrays(path: Path) -> dict[str, Tensor]:
    """The fp32 arrays of a pickle, by the keys on the way to them joined with ``/``.

    Args:
        path: a pickle of dictionaries, in which lie arrays or more of them.

    Raises:
        ValueError: if the file is missing or damaged, holds something else, or names anything but what makes arrays.
    """
    try:
        with path.open("rb") as opened:
            return dict(_tensors(_Arrays(opened).load(), ""))
    except Exception as error:  # each kind of damage has its own
        reason = textwrap.shorten(str(error), 200) or type(error).__name__
        raise ValueError(
            f"{path} cannot be read as arrays alone ({reason}); install or download what it is of again"
        ) from error


class _Arrays(pickle.Unpickler):
    """Looks names up in ``_ALLOWED``, so nothing is imported."""

    def find_class(self, module_name: str, global_name: str) -> object:
        try:
            return _ALLOWED[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}") from None


def _tensors(content: object, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _tensors(value, f"{name}/{key}" if name else str(key))
    elif isinstance(content, np.ndarray) and content.dtype == np.float32 and name:
        yield name, torch.from_numpy(content)
    else:
        what = content.dtype if isinstance(content, np.ndarray) else type(content).__name__
        raise ValueError(f"it holds {what} under {name!r}")
