"""Pickles of numpy arrays in dictionaries, read without running anything that they name, numpy's own code included."""

import pickle
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


class _Type:
    """A type of numbers as a pickle makes it: by its code, such as f4, and the order of its bytes."""

    def __init__(self, code: object, *_: object) -> None:
        self.code, self.order = code, ""

    def __setstate__(self, state: object) -> None:
        match state:
            case (int(), str(order), *_):
                self.order = order


class _Array:
    """An array as a pickle makes it; numpy's own believes whatever it is told, and reads and writes any memory."""

    def __init__(self, *_: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    @property
    def kind(self) -> str:
        """The code of its type; empty where it has none."""
        match self.state:
            case (_, _, _Type(code=str(code)), _, _):
                return code
        return ""

    def tensor(self) -> Tensor:
        """Of an array of f4, a copy."""
        match self.state:
            case (int(), tuple(shape), _Type(order="<"), bool(fortran), bytes(content)):
                numbers = np.frombuffer(content, "<f4").reshape(shape, order="F" if fortran else "C")
                return torch.from_numpy(numbers.copy())
        raise ValueError("an array is not as numpy writes it")


# What numpy's pickles call to make an array; numpy 2 moved it.
_ALLOWED: dict[tuple[str, str], object] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
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
    elif isinstance(content, _Array) and content.kind == "f4" and name:
        yield name, content.tensor()
    else:
        what = content.kind if isinstance(content, _Array) else type(content).__name__
        raise ValueError(f"it holds {what} under {name!r}")
