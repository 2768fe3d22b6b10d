"""Operators that change shapes, or take tensors apart and put them together."""

from collections.abc import Sequence

import numpy as np

from snapgen_pl.export.limits import MAX_RANK
from snapgen_pl.export.mil import layout
from snapgen_pl.export.mil.attention import KEYS, key_rows
from snapgen_pl.export.mil.layout import Value
from snapgen_pl.export.mil.lowering import Lowering, Operand, lowers


@lowers("Transpose")
def transpose(lowering: Lowering) -> Value:
    """Other names for the axes."""
    value = lowering.variable(0)
    return layout.transposed(value, lowering.attribute("perm", tuple(reversed(range(len(value.shape))))))


@lowers("Reshape")
def reshape(lowering: Lowering) -> Value:
    """Another shape for the axes that lie together, with ONNX's 0 (as it was) and -1 (what is left)."""
    value = lowering.variable(0)
    wanted = [int(size) for size in lowering.array(1)]
    if not lowering.attribute("allowzero", 0):
        wanted = [size or value.shape[axis] for axis, size in enumerate(wanted)]
    if -1 in wanted:
        wanted[wanted.index(-1)] = int(np.prod(value.shape)) // int(-np.prod(wanted))
    return layout.reshaped(lowering.emit, value, wanted)


@lowers("Flatten")
def flatten(lowering: Lowering) -> Value:
    """All axes before one, and all from it on, as one each."""
    value = lowering.variable(0)
    axis = lowering.attribute("axis", 1)
    sizes = value.shape[:axis], value.shape[axis:]
    return layout.reshaped(lowering.emit, value, [int(np.prod(part)) for part in sizes])


@lowers("Unsqueeze")
def unsqueeze(lowering: Lowering) -> Value:
    """More axes of size 1."""
    value = lowering.variable(0)
    rank = len(value.shape) + lowering.array(1).size
    added = {int(axis) % rank for axis in lowering.array(1)}
    sizes = iter(value.shape)
    return layout.renamed(value, [1 if axis in added else next(sizes) for axis in range(rank)])


@lowers("Squeeze")
def squeeze(lowering: Lowering) -> Value:
    """Fewer axes of size 1."""
    value = lowering.variable(0)
    rank = len(value.shape)
    dropped = (
        {int(axis) % rank for axis in lowering.array(1)}
        if lowering.has(1)
        else {axis for axis, size in enumerate(value.shape) if size == 1}
    )
    return layout.renamed(value, [size for axis, size in enumerate(value.shape) if axis not in dropped])


@lowers("Expand")
def expand(lowering: Lowering) -> Value:
    """Repeats axes of size 1."""
    value = lowering.variable(0)
    shape = np.broadcast_shapes(value.shape, tuple(int(size) for size in lowering.array(1)))
    before = (1,) * (len(shape) - len(value.shape)) + value.shape
    value = layout.renamed(value, before)
    if before == shape:
        return value
    if len(shape) > MAX_RANK:
        raise ValueError(f"a result of shape {shape} has rank {len(shape)}; Core ML has {MAX_RANK} at most")
    reps = [wanted // size for wanted, size in zip(shape, before, strict=True)]
    whole = layout.view(lowering.emit, layout.permuted(lowering.emit, value, layout.plain_order(before)), before)
    return layout.plain(lowering.emit("tile", x=whole, reps=reps), shape)


@lowers("Concat")
def concat(lowering: Lowering) -> Value:
    """Tensors behind each other along an axis."""
    operands = [lowering.operand(place) for place in range(len(lowering.node.inputs))]
    return concatenated(lowering, operands, lowering.attribute("axis"))


def concatenated(lowering: Lowering, operands: Sequence[Operand], axis: int) -> Value:
    """Tensors behind each other along an axis, on the layout of the largest."""
    if len(operands) == 1 and isinstance(operands[0], Value):
        return operands[0]
    axis %= len(operands[0].shape)
    island = all(lowering.in_island(operand) for operand in operands if isinstance(operand, Value))
    lead = max((each for each in operands if isinstance(each, Value)), key=lambda value: np.prod(value.shape))
    total = sum(operand.shape[axis] for operand in operands)
    shape = tuple(total if place == axis else size for place, size in enumerate(lead.shape))
    # Where a single position is joined to others, its axis has no place in memory yet: the result's layout tells it.
    order = lead.order if axis in lead.order else _axis_in_place(lead, axis)
    goal = layout.spread_shape(Value(None, shape, order))
    dimension = layout.spread_dimension(Value(None, shape, order), axis)
    parts = []
    for operand in operands:
        part = [*goal[:dimension], operand.shape[axis], *goal[dimension + 1 :]]
        own = [place for place in order if operand.shape[place] > 1]
        if isinstance(operand, Value):
            operand = operand if island else lowering.out_of_island(operand)
            parts.append(layout.view(lowering.emit, layout.permuted(lowering.emit, operand, own), part))
        else:
            rest = [place for place in range(operand.ndim) if place not in own]
            array = lowering.cast_array(operand, island).transpose(rest + own)
            parts.append(np.ascontiguousarray(array).reshape(part))
    return Value(lowering.emit("concat", values=parts, axis=dimension), shape, order)


@lowers("Split")
def split(lowering: Lowering) -> list[Value]:
    """A tensor in parts along an axis."""
    value = lowering.variable(0)
    axis = lowering.attribute("axis", 0) % len(value.shape)
    count = len(lowering.node.outputs)
    chunk = -(-value.shape[axis] // count)
    sizes = (
        [int(size) for size in lowering.array(1)]
        if lowering.has(1)
        else [min(chunk, value.shape[axis] - chunk * part) for part in range(count)]
    )
    if len(value.shape) == 4 and all(lowering.read_as(name, "Attention", KEYS) for name in lowering.node.outputs):
        value = key_rows(lowering, value)  # the keys of all layers by one transpose
    return parted(lowering, value, axis, sizes)


def parted(lowering: Lowering, value: Value, axis: int, sizes: Sequence[int]) -> list[Value]:
    """Parts of a tensor along an axis."""
    if len(sizes) == 1:
        return [value]
    var, dimension, unit = layout.parts_along(lowering.emit, value, axis)
    parts = lowering.emit("split", x=var, split_sizes=[size * unit for size in sizes], axis=dimension)
    shapes = [tuple(size if place == axis else each for place, each in enumerate(value.shape)) for size in sizes]
    return [_shrunk(value, part, shape) for part, shape in zip(parts, shapes, strict=True)]


@lowers("Slice")
def slice_(lowering: Lowering) -> Value:
    """Every so many elements along some axes."""
    value = lowering.variable(0)
    rank = len(value.shape)
    starts, ends = (lowering.array(place).tolist() for place in (1, 2))
    axes = [axis % rank for axis in lowering.array(3).tolist()] if lowering.has(3) else list(range(len(starts)))
    steps = lowering.array(4).tolist() if lowering.has(4) else [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 0:
            raise ValueError(f"step {step}; only positive ones are lowered")
        taken = range(value.shape[axis])[start:end:step]
        if not taken:
            raise ValueError(f"a slice of nothing along axis {axis}")
        if len(taken) < value.shape[axis]:
            value = _sliced(lowering, value, axis, taken)
    return value


def _sliced(lowering: Lowering, value: Value, axis: int, taken: range) -> Value:
    if taken.step == 1:
        var, place, unit = layout.parts_along(lowering.emit, value, axis)
    else:
        var, places = layout.separate(lowering.emit, value, [axis])
        place, unit = places[axis], 1
    begin, end, stride = [0] * len(var.shape), list(var.shape), [1] * len(var.shape)
    begin[place], end[place], stride[place] = taken.start * unit, (taken[-1] + 1) * unit, taken.step
    part = lowering.emit("slice_by_index", x=var, begin=begin, end=end, stride=stride)
    shape = tuple(len(taken) if each == axis else size for each, size in enumerate(value.shape))
    return _shrunk(value, part, shape)


@lowers("Pad")
def pad(lowering: Lowering) -> Value:
    """A constant around a tensor."""
    lowering.require(mode="constant")
    value = lowering.value(0)
    rank = len(value.shape)
    amounts = lowering.array(1).astype(int).tolist()
    axes = [axis % rank for axis in lowering.array(3).tolist()] if lowering.has(3) else list(range(rank))
    fill = float(lowering.array(2).item()) if lowering.has(2) else 0.0
    around = [0] * (2 * rank)
    for place, axis in enumerate(axes):
        around[2 * axis : 2 * axis + 2] = amounts[place], amounts[place + len(axes)]
    if any(amount < 0 for amount in around):
        raise ValueError(f"pads {amounts}; negative ones are not lowered")
    whole = layout.as_onnx(lowering.emit, value)
    shape = [size + around[2 * axis] + around[2 * axis + 1] for axis, size in enumerate(value.shape)]
    var = lowering.emit("pad", x=whole, pad=around, mode="constant", constant_val=lowering.dtype(fill))
    return layout.plain(var, shape)


def _shrunk(value: Value, var: layout.Var, shape: layout.Shape) -> Value:
    """A part of a tensor: an axis of which 1 is left has no place in memory any more."""
    return Value(var, shape, tuple(axis for axis in value.order if shape[axis] > 1))


def _axis_in_place(value: Value, axis: int) -> tuple[int, ...]:
    """The order with an axis that had size 1, before the first that comes after it in ONNX's."""
    order = list(value.order)
    place = next((place for place, other in enumerate(order) if other > axis), len(order))
    return (*order[:place], axis, *order[place:])
