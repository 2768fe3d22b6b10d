"""What an operation is called with."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from snapgen_pl.export.constant import Value

IOS17 = 8  # the specification version that changed the meaning of some operations
_T = TypeVar("_T")


class Arguments:
    """The arguments of one operation by name, floating ones in fp32.

    A reader with a default is for an optional argument; without one, the argument must be there. What no reader asked
    for is kept in :attr:`unread`, so that nothing a program says is ignored in silence.

    Args:
        values: by argument, all values it is bound to.
        spec_version: of the package.

    Raises:
        ValueError: in each reader, if the argument is missing or of another kind.
    """

    def __init__(self, values: Mapping[str, Sequence[Value]], spec_version: int) -> None:
        self._values = values
        self.spec_version = spec_version
        self.unread = set(values)

    def has(self, name: str) -> bool:
        """Whether it is given."""
        return name in self._values

    def ignore(self, *names: str) -> None:
        """Says that arguments have no meaning here."""
        self.unread -= set(names)

    def tensors(self, name: str) -> list[Tensor]:
        """All tensors of an argument that takes several."""
        return [_fp32(value) for value in self._stored(name)]

    def tensor(self, name: str) -> Tensor:
        """A tensor."""
        return _fp32(self._one(name))

    def optional(self, name: str) -> Tensor | None:
        """A tensor, or None where it is not given."""
        return self.tensor(name) if self.has(name) else None

    def ints(self, name: str, default: Sequence[int] | None = None) -> list[int]:
        """A vector of integers."""
        listed = None if default is None else list(default)
        return self._or(listed, name, lambda value: [int(number) for number in value.reshape(-1).tolist()])

    def flags(self, name: str, default: Sequence[bool]) -> list[bool]:
        """A vector of booleans."""
        return self._or(list(default), name, lambda value: [bool(number) for number in value.reshape(-1).tolist()])

    def integer(self, name: str, default: int | None = None) -> int:
        """One integer."""
        return self._or(default, name, lambda value: int(value.item()))

    def number(self, name: str, default: float | None = None) -> float:
        """One number, as the program rounded it."""
        return self._or(default, name, lambda value: float(value.item()))

    def flag(self, name: str, default: bool) -> bool:
        """One boolean."""
        return self._or(default, name, lambda value: bool(value.item()))

    def epsilon(self, default: float) -> float:
        """The argument ``epsilon``; its default is rounded to the type of ``x``, as Core ML's own is."""
        return self.number("epsilon", torch.tensor(default, dtype=_tensor(self._one("x")).dtype).item())

    def text(self, name: str, default: str | None = None) -> str:
        """A string."""
        if default is not None and not self.has(name):
            return default
        value = self._one(name)
        if not isinstance(value, str):
            raise ValueError(f"its argument '{name}' is no string; export the package again")
        return value

    def _stored(self, name: str) -> list[Tensor]:
        if name not in self._values:
            raise ValueError(f"it has no argument '{name}'; export the package again")
        self.unread.discard(name)
        return [_tensor(value) for value in self._values[name]]

    def _one(self, name: str) -> Value:
        if len(self._values.get(name, ())) != 1:
            raise ValueError(f"it needs one argument '{name}'; export the package again")
        self.unread.discard(name)
        return self._values[name][0]

    def _or(self, default: _T | None, name: str, read: Callable[[Tensor], _T]) -> _T:
        if default is not None and not self.has(name):
            return default
        return read(_tensor(self._one(name)))


def _tensor(value: Value) -> Tensor:
    if isinstance(value, str):
        raise ValueError(f"it has the string '{value}' where a tensor belongs; export the package again")
    return value


def _fp32(value: Value) -> Tensor:
    tensor = _tensor(value)
    return tensor.float() if tensor.is_floating_point() else tensor


Function = Callable[[Arguments], Tensor | Sequence[Tensor]]
