"""Operators that look things up."""

import numpy as np
from coremltools.converters.mil.mil import types

from snapgen_pl.export.mil import layout
from snapgen_pl.export.mil.layout import Value
from snapgen_pl.export.mil.lowering import Lowering, lowers
from snapgen_pl.export.mil.products import channels_first


@lowers("Gather")
def gather(lowering: Lowering) -> Value:
    """Entries along an axis; from a table, or from a tensor at known places.

    What is looked up for tokens is laid out at once as products take it, channels first.
    """
    table, indices = lowering.variable(0), lowering.operand(1)
    axis = lowering.attribute("axis", 0) % len(table.shape)
    shape = (*table.shape[:axis], *indices.shape, *table.shape[axis + 1 :])
    whole = layout.as_onnx(lowering.emit, table)
    places = layout.as_onnx(lowering.emit, indices) if isinstance(indices, Value) else _known(table, indices, axis)
    found = layout.plain(lowering.emit("gather", x=whole, indices=places, axis=axis, **_unchecked(lowering)), shape)
    if isinstance(indices, Value) and axis == 0 and len(table.shape) == 2:
        return layout.permuted(lowering.emit, found, channels_first(found, len(shape) - 1))
    return found


@lowers("GatherND")
def gather_nd(lowering: Lowering) -> Value:
    """Entries at tuples of places."""
    lowering.require(batch_dims=0)
    table, indices = lowering.variable(0), lowering.variable(1)
    depth = indices.shape[-1]
    shape = (*indices.shape[:-1], *table.shape[depth:])
    whole, places = (layout.as_onnx(lowering.emit, value) for value in (table, indices))
    if truths := whole.dtype == types.bool:  # which MIL does not look up
        whole = lowering.emit("cast", x=whole, dtype="int32")
    found = lowering.emit("gather_nd", x=whole, indices=places, **_unchecked(lowering))
    return layout.plain(lowering.emit("cast", x=found, dtype="bool") if truths else found, shape)


def _unchecked(lowering: Lowering) -> dict[str, bool]:
    """Nothing, or that places need no check at run time, where that is asked (iOS 17)."""
    return {"validate_indices": False} if lowering.options.target >= 17 else {}


def _known(table: Value, indices: np.ndarray[tuple[int, ...], np.dtype[np.int64]], axis: int) -> layout.Var:
    """Places counted from the start."""
    size = table.shape[axis]
    if np.any((indices < -size) | (indices >= size)):
        raise ValueError(f"places {indices.tolist()} in an axis of {size}")
    return np.where(indices < 0, indices + size, indices).astype(np.int32)
