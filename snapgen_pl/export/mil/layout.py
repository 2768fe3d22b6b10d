"""Tensors of an ONNX graph as they lie in a MIL program: with their axes in any order, and grouped in any way.

ONNX moves axes about to bring channels last for a matrix product, heads apart for attention, and both back again. In
memory none of that need happen: a :class:`Value` remembers which axis lies where, and operators work on it as it lies.
A transpose is then a change of names, a reshape is put off until an operator needs its shape, and what reaches the
Neural Engine stays in its own layout, channels before positions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from operator import mul
from typing import Any, Protocol

from snapgen_pl.export.limits import MAX_RANK

Shape = tuple[int, ...]
Var = Any  # coremltools has no types


class Emit(Protocol):
    """Adds an operator of MIL to the program, with its arguments by name."""

    def __call__(self, op: str, /, **arguments: Any) -> Any: ...  # noqa: D102  (documented above)


@dataclass(frozen=True)
class Value:
    """A tensor.

    Attributes:
        var: holds the elements, row after row, under a shape that may join and split axes anyhow.
        shape: as ONNX has it.
        order: the axes of ``shape`` that are larger than 1 as they lie in memory, slowest first.
    """

    var: Var
    shape: Shape
    order: tuple[int, ...]

    @property
    def sizes(self) -> Shape:
        """The sizes of the axes in ``order``."""
        return tuple(self.shape[axis] for axis in self.order)


def plain_order(shape: Sequence[int]) -> tuple[int, ...]:
    """The order of a tensor that lies as ONNX has it."""
    return tuple(axis for axis, size in enumerate(shape) if size > 1)


def plain(var: Var, shape: Sequence[int]) -> Value:
    """A tensor that lies as ONNX has it."""
    return Value(var, tuple(shape), plain_order(shape))


def view(emit: Emit, value: Value, shape: Sequence[int]) -> Var:
    """The elements as they lie, under another shape."""
    if tuple(value.var.shape) == tuple(shape):
        return value.var
    if not shape:
        return emit("squeeze", x=value.var)
    return emit("reshape", x=value.var, shape=tuple(shape))


def spread_shape(value: Value) -> Shape:
    """A shape that gives every axis a dimension of its own, of rank 4 where that suffices.

    The first axis stays first, as a batch; a lone pair after it becomes (C, 1, S), for so the Neural Engine's rank of 4
    has channels and positions. A vector is a row: as (C, 1, 1) each of its numbers would be a row of 64 bytes.
    """
    sizes = list(value.sizes)
    batch = sizes.pop(0) if value.order[:1] == (0,) and len(value.shape) > 1 else 1
    if len(sizes) < 2:
        return (batch, *(sizes or [1]))
    if len(sizes) > 3:
        return (batch, *sizes) if batch > 1 else tuple(sizes)
    return (batch, sizes[0], 1, sizes[1]) if len(sizes) == 2 else (batch, *sizes)


def separate(emit: Emit, value: Value, axes: Iterable[int]) -> tuple[Var, dict[int, int]]:
    """The elements under a shape where each of some axes has a dimension of its own.

    Args:
        emit: adds the reshape that it may take.
        value: a tensor.
        axes: larger than 1 each.

    Returns:
        The variable, and each axis' dimension in it.

    Raises:
        ValueError: for an axis of size 1, which has no place in memory, and where Core ML's ranks do not suffice.
    """
    axes = tuple(axes)
    if single := [axis for axis in axes if value.shape[axis] == 1]:
        raise ValueError(f"axes {single} of {value.shape} are of size 1; nothing is done along such")
    found = _dimensions(value, value.var.shape)
    if not all(axis in found for axis in axes):
        shape = spread_shape(value)
        if len(shape) > MAX_RANK:
            raise ValueError(f"a tensor {value.shape} needs rank {len(shape)} here; Core ML has {MAX_RANK} at most")
        value = Value(view(emit, value, shape), value.shape, value.order)
        found = _dimensions(value, shape)
    return value.var, {axis: found[axis] for axis in axes}


def parts_along(emit: Emit, value: Value, axis: int) -> tuple[Var, int, int]:
    """The elements under a shape where parts of an axis are parts of a dimension: as they lie, if they lie so.

    Args:
        emit: adds the reshape that it may take.
        value: a tensor.
        axis: larger than 1.

    Returns:
        The variable, the dimension, and how many of its elements are one of the axis.
    """
    spans = dict(zip(value.order, _spans(value.sizes), strict=True))
    if axis in spans:
        start, end = spans[axis]
        for dimension, (first, last) in enumerate(_spans(value.var.shape)):
            if first == start and last % end == 0:
                return value.var, dimension, last // end
    var, places = separate(emit, value, [axis])
    return var, places[axis], 1


def spread_dimension(value: Value, axis: int) -> int:
    """The dimension of an axis in :func:`spread_shape`."""
    return _dimensions(value, spread_shape(value))[axis]


def permuted(emit: Emit, value: Value, order: Sequence[int]) -> Value:
    """The tensor with its axes in another order in memory; moves elements where that is another one."""
    if value.order == tuple(order):
        return value
    goal = Value(None, value.shape, tuple(order))
    before, after = spread_shape(value), spread_shape(goal)
    if len(before) != len(after):
        before, after = value.sizes, goal.sizes
    places = _dimensions(value, before)
    wanted = {dimension: axis for axis, dimension in _dimensions(goal, after).items()}
    spare = [dimension for dimension in range(len(before)) if dimension not in places.values()]
    perm = [places[wanted[dimension]] if dimension in wanted else spare.pop(0) for dimension in range(len(after))]
    var = emit("transpose", x=view(emit, value, before), perm=perm)
    return Value(var, value.shape, tuple(order))


def as_onnx(emit: Emit, value: Value) -> Var:
    """The elements in ONNX's order, under ONNX's shape."""
    return view(emit, permuted(emit, value, plain_order(value.shape)), value.shape)


def transposed(value: Value, perm: Sequence[int]) -> Value:
    """ONNX's Transpose, which moves nothing."""
    place = {axis: position for position, axis in enumerate(perm)}
    return Value(value.var, tuple(value.shape[axis] for axis in perm), tuple(place[axis] for axis in value.order))


def reshaped(emit: Emit, value: Value, shape: Sequence[int]) -> Value:
    """ONNX's Reshape; moves elements only where it joins axes that do not follow each other in memory."""
    shape = tuple(shape)
    order: list[int] = []
    groups = {old[0]: (old, new) for old, new in _groups(value.shape, shape)}
    rest = list(value.order)
    while rest:
        old, new = groups.get(rest[0], ((), ()))
        if not old or tuple(rest[: len(old)]) != old:
            return plain(permuted(emit, value, plain_order(value.shape)).var, shape)
        order += new
        del rest[: len(old)]
    return Value(value.var, shape, tuple(order))


def renamed(value: Value, shape: Sequence[int]) -> Value:
    """The tensor with axes of size 1 added or taken away."""
    axes = iter(plain_order(shape))
    names = dict(zip(sorted(value.order), axes, strict=True))
    return Value(value.var, tuple(shape), tuple(names[axis] for axis in value.order))


def broadcast_part(value: Value, covered: set[int], shape: Sequence[int]) -> Shape | None:
    """What a tensor that has only some axes of ``value`` must be shaped like to meet it dimension by dimension.

    Args:
        value: the larger tensor.
        covered: the axes that the other one has, in the numbering of ``value``.
        shape: of the variable of ``value``.

    Returns:
        The shape; None where a dimension holds axes of both kinds.
    """
    touched = _touched(value, shape)
    if any(axes & covered and axes - covered for axes in touched):
        return None
    return tuple(size if axes & covered else 1 for axes, size in zip(touched, shape, strict=True))


def _dimensions(value: Value, shape: Sequence[int]) -> dict[int, int]:
    """The dimension of each axis that has one to itself."""
    touched = _touched(value, shape)
    own = {next(iter(axes)): dimension for dimension, axes in enumerate(touched) if len(axes) == 1}
    return {axis: dimension for axis, dimension in own.items() if shape[dimension] == value.shape[axis]}


def _touched(value: Value, shape: Sequence[int]) -> list[set[int]]:
    """The axes that each dimension of a shape holds, or holds a part of."""
    axes = _spans(value.sizes)
    return [
        {value.order[i] for i, (start, end) in enumerate(axes) if size > 1 and start < last and first < end}
        for size, (first, last) in zip(shape, _spans(shape), strict=True)
    ]


def _spans(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """How many blocks the memory is cut into before and after each dimension: a place that knows no shape."""
    ends = list(accumulate(sizes, mul))
    return list(zip([1, *ends[:-1]], ends, strict=True)) if ends else []


def _groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The smallest runs of axes that hold the same elements before and after a reshape, axes of size 1 left out."""
    groups = []
    before, after = list(plain_order(old)), list(plain_order(new))
    while before:
        left, right = [before.pop(0)], [after.pop(0)]
        while (a := prod(old[axis] for axis in left)) != (b := prod(new[axis] for axis in right)):
            if a < b:
                left.append(before.pop(0))
            else:
                right.append(after.pop(0))
        groups.append((tuple(left), tuple(right)))
    return groups
