"""Normalisations, along whichever dimension channels lie, and reductions."""

from collections.abc import Collection
from math import prod

import numpy as np

from snapgen_pl.export.limits import MAX_SIDE, MIN_LAST_AXIS
from snapgen_pl.export.mil import layout
from snapgen_pl.export.mil.elementwise import combine
from snapgen_pl.export.mil.layout import Value
from snapgen_pl.export.mil.lowering import Lowering, lowers

REDUCTIONS = {
    "ReduceL2": "reduce_l2_norm",
    "ReduceMax": "reduce_max",
    "ReduceMean": "reduce_mean",
    "ReduceMin": "reduce_min",
    "ReduceProd": "reduce_prod",
    "ReduceSum": "reduce_sum",
    "ReduceSumSquare": "reduce_sum_square",
}


@lowers("LayerNormalization")
def layer_norm(lowering: Lowering) -> Value:
    """Over the last axis."""
    value = lowering.value(0)
    axis = _last_axis(lowering, value)
    var, places = layout.separate(lowering.emit, value, [axis])
    epsilon = lowering.epsilon(lowering.attribute("epsilon", 1e-5))
    normal = lowering.emit("layer_norm", x=var, axes=[places[axis]], epsilon=epsilon)
    return _affine(lowering, Value(normal, value.shape, value.order))


@lowers("RMSNormalization")
def rms_norm(lowering: Lowering) -> Value:
    """Over the last axis: x rsqrt(mean(x^2) + epsilon) gain. In float16, x^2 overflows from |x| = 256 on."""
    value = lowering.value(0)
    axis = _last_axis(lowering, value)
    var, places = layout.separate(lowering.emit, value, [axis])
    mean = lowering.emit("reduce_mean", x=lowering.emit("square", x=var), axes=[places[axis]], keep_dims=True)
    scale = lowering.emit("rsqrt", x=mean, epsilon=lowering.epsilon(lowering.attribute("epsilon", 1e-5)))
    return _affine(lowering, Value(lowering.emit("mul", x=var, y=scale), value.shape, value.order))


@lowers("GroupNormalization")
def group_norm(lowering: Lowering) -> Value:
    """Over groups of channels, as MIL's instance norm of each group."""
    value = lowering.value(0)
    batch, channels, *sides = value.shape
    groups = lowering.attribute("num_groups")
    value = layout.permuted(lowering.emit, value, layout.plain_order(value.shape))
    # Positions in a row only where their own rows are short: the Neural Engine's sides end at 16,384.
    joined = sides[-1] < MIN_LAST_AXIS and prod(sides) <= MAX_SIDE
    width = prod(sides) if joined else sides[-1]
    shape = (batch, groups, channels * prod(sides) // (groups * width), width)
    grouped = layout.view(lowering.emit, value, shape)
    epsilon = lowering.epsilon(lowering.attribute("epsilon", 1e-5))
    normal = lowering.emit("instance_norm", x=grouped, epsilon=epsilon)
    return _affine(lowering, Value(normal, value.shape, value.order), len(sides))


@lowers("Softmax")
def softmax(lowering: Lowering) -> Value:
    """Along one axis."""
    value = lowering.value(0)
    axis = lowering.attribute("axis", -1) % len(value.shape)
    var, places = layout.separate(lowering.emit, value, [axis])
    return Value(lowering.emit("softmax", x=var, axis=places[axis]), value.shape, value.order)


@lowers(*REDUCTIONS)
def reduce(lowering: Lowering) -> Value:
    """Over some axes, or over all."""
    value = lowering.value(0)
    lowering.require(noop_with_empty_axes=0)
    given = lowering.array(1) if lowering.has(1) else ()
    axes = [int(axis) % len(value.shape) for axis in given] or list(range(len(value.shape)))
    return _reduced(lowering, value, REDUCTIONS[lowering.node.op], axes, bool(lowering.attribute("keepdims", 1)))


@lowers("ArgMax")
def arg_max(lowering: Lowering) -> Value:
    """The place of the largest along one axis; of equal ones the first."""
    lowering.require(select_last_index=0)
    value = lowering.variable(0)
    axis = lowering.attribute("axis", 0) % len(value.shape)
    whole = layout.as_onnx(lowering.emit, value)
    keep = bool(lowering.attribute("keepdims", 1))
    var = lowering.emit("reduce_argmax", x=whole, axis=axis, keep_dims=keep)
    return layout.plain(var, _reduced_shape(value.shape, [axis], keep))


def _reduced(lowering: Lowering, value: Value, operator: str, axes: Collection[int], keep: bool) -> Value:
    real = [axis for axis in axes if value.shape[axis] > 1]
    if operator in ("reduce_l2_norm", "reduce_sum_square") and not real:
        raise ValueError(f"over axes of size 1, {list(axes)}")
    var, places = layout.separate(lowering.emit, value, real)
    if real:
        var = lowering.emit(operator, x=var, axes=sorted(places.values()), keep_dims=True)
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(value.shape))
    left = Value(var, kept, tuple(axis for axis in value.order if axis not in real))
    return left if keep else layout.renamed(left, _reduced_shape(value.shape, axes, False))


def _reduced_shape(shape: layout.Shape, axes: Collection[int], keep: bool) -> layout.Shape:
    return tuple(1 if axis in axes else size for axis, size in enumerate(shape) if keep or axis not in axes)


def _affine(lowering: Lowering, value: Value, sides: int = 0) -> Value:
    """The norm's gain and bias, broadcast over so many axes after their own; those that do nothing are left out."""
    gain = lowering.array(1)
    if not np.all(gain == 1):
        value = combine(lowering, "mul", value, gain.reshape(*gain.shape, *[1] * sides))
    if lowering.has(2) and np.any(bias := lowering.array(2)):
        value = combine(lowering, "add", value, bias.reshape(*bias.shape, *[1] * sides))
    return value


def _last_axis(lowering: Lowering, value: Value) -> int:
    axis = int(lowering.attribute("axis", -1)) % len(value.shape)
    if axis != len(value.shape) - 1:
        raise ValueError(f"axis {axis} of {len(value.shape)}; the last one is lowered")
    if value.shape[axis] == 1:
        raise ValueError("a norm over an axis of size 1")
    return axis
