"""Convolutions and matrix products. Products with weights are 1x1 convolutions wherever there are positions."""

from math import prod

import numpy as np

from snapgen_pl.export.limits import MAX_SIDE
from snapgen_pl.export.mil import layout
from snapgen_pl.export.mil.graph import Array
from snapgen_pl.export.mil.layout import Value
from snapgen_pl.export.mil.lowering import Lowering, lowers


@lowers("Conv")
def convolution(lowering: Lowering) -> Value:
    """A convolution over two dimensions with known weights."""
    value, weight = lowering.value(0), lowering.array(1)
    if weight.ndim != 4:
        raise ValueError(f"weights of shape {weight.shape}; two dimensions are lowered")
    lowering.require(auto_pad="NOTSET")
    top, left, bottom, right = lowering.attribute("pads", (0, 0, 0, 0))
    image = layout.as_onnx(lowering.emit, value)
    bias = {"bias": lowering.cast_array(lowering.array(2))} if lowering.has(2) else {}
    var = lowering.emit(
        "conv",
        x=image,
        weight=lowering.cast_array(weight),
        strides=list(lowering.attribute("strides", (1, 1))),
        pad_type="custom",
        pad=[top, bottom, left, right],
        dilations=list(lowering.attribute("dilations", (1, 1))),
        groups=lowering.attribute("group", 1),
        **bias,
    )
    return layout.plain(var, tuple(var.shape))


@lowers("Gemm")
def gemm(lowering: Lowering) -> Value:
    """alpha A B + beta C, with known B and C."""
    lowering.require(transA=0)
    weight = lowering.array(1) * np.float32(lowering.attribute("alpha", 1.0))
    bias = None
    if lowering.has(2):
        bias = lowering.array(2) * np.float32(lowering.attribute("beta", 1.0))
    weight_OC = weight if lowering.attribute("transB", 0) else weight.T
    if bias is not None:
        if bias.ndim == 2 and len(bias) > 1:
            raise ValueError(f"C of shape {bias.shape}; one row for all is lowered")
        bias = np.broadcast_to(bias, (1, len(weight_OC)))[0]
    return contracted(lowering, lowering.value(0), 1, weight_OC, bias)


@lowers("MatMul")
def matmul(lowering: Lowering) -> Value:
    """A product with weights on either side, or of two variables."""
    left, right = lowering.operand(0), lowering.operand(1)
    if isinstance(left, Value) and not isinstance(right, Value) and right.ndim == 2:
        return contracted(lowering, lowering.value(0), len(left.shape) - 1, right.T)
    if not isinstance(left, Value) and left.ndim == 2 and len(right.shape) > 2:
        return contracted(lowering, lowering.value(1), len(right.shape) - 2, left)
    a, b = lowering.value(0), lowering.value(1)
    var = lowering.emit("matmul", x=layout.as_onnx(lowering.emit, a), y=layout.as_onnx(lowering.emit, b))
    return layout.plain(var, tuple(var.shape))


def contracted(lowering: Lowering, value: Value, axis: int, weight_OC: Array, bias_O: Array | None = None) -> Value:
    """Replaces an axis of C by one of O, out_o = sum_c weight_oc in_c + bias_o.

    Args:
        lowering: where to.
        value: any tensor.
        axis: the one of size C.
        weight_OC: known.
        bias_O: likewise.
    """
    shape = tuple(len(weight_OC) if place == axis else size for place, size in enumerate(value.shape))
    bias = {} if bias_O is None else {"bias": lowering.cast_array(bias_O)}
    if prod(value.shape) == value.shape[axis]:  # a single vector
        vector = layout.view(lowering.emit, value, (1, value.shape[axis]))
        var = lowering.emit("linear", x=vector, weight=lowering.cast_array(weight_OC), **bias)
        return layout.plain(var, shape)
    value = layout.permuted(lowering.emit, value, channels_first(value, axis))
    columns = layout.view(lowering.emit, value, _columns_shape(value, axis))
    weight_OC11 = lowering.cast_array(weight_OC)[:, :, None, None]
    var = lowering.emit("conv", x=columns, weight=weight_OC11, pad_type="valid", **bias)
    return Value(var, shape, tuple(place for place in _axis_first(value, axis) if shape[place] > 1))


def channels_first(value: Value, axis: int) -> tuple[int, ...]:
    """The order with an axis right after the batch; the others keep theirs."""
    rest = [place for place in value.order if place != axis]
    batch = [rest.pop(0)] if rest[:1] == [0] and len(value.shape) > 2 and axis != 0 else []
    return (*batch, *([axis] if value.shape[axis] > 1 else []), *rest)


def _axis_first(value: Value, axis: int) -> tuple[int, ...]:
    """The order of :func:`channels_first`, with the axis even where it was of size 1."""
    return channels_first(Value(None, (*value.shape[:axis], 2, *value.shape[axis + 1 :]), value.order), axis)


def _columns_shape(value: Value, axis: int) -> layout.Shape:
    """(B, C, 1, S), as attention wants positions; more of them than a side holds stay (B, C, H, W) if they lie so."""
    batch = value.shape[0] if value.order[:1] == (0,) and axis != 0 and len(value.shape) > 2 else 1
    channels = value.shape[axis]
    positions = prod(value.shape) // (batch * channels)
    own = tuple(value.var.shape)
    if positions > MAX_SIDE and len(own) == 4 and own[:2] == (batch, channels):
        return own
    return (batch, channels, 1, positions)


@lowers("Col2Im")
def fold(lowering: Lowering) -> Value:
    """Patches side by side; they may not overlap."""
    value = lowering.value(0)
    height, width = lowering.array(1).tolist()
    block = lowering.array(2).tolist()
    lowering.require(dilations=[1, 1], pads=[0, 0, 0, 0], strides=block)
    if block[0] != block[1] or lowering.attribute("strides") is None:
        raise ValueError(f"blocks of {block} by strides {lowering.attribute('strides')}; square ones side by side are")
    side = block[0]
    batch, values = value.shape[:2]
    plain = layout.permuted(lowering.emit, value, layout.plain_order(value.shape))
    patches = layout.view(lowering.emit, plain, (batch, values, height // side, width // side))
    var = lowering.emit("pixel_shuffle", x=patches, upscale_factor=side)
    return layout.plain(var, (batch, values // side**2, height, width))


@lowers("DepthToSpace")
def depth_to_space(lowering: Lowering) -> Value:
    """Channels become pixels, in one of two orders."""
    side = lowering.attribute("blocksize")
    image = layout.as_onnx(lowering.emit, lowering.value(0))
    if lowering.attribute("mode", "DCR") == "CRD":
        var = lowering.emit("pixel_shuffle", x=image, upscale_factor=side)
    else:
        var = lowering.emit("depth_to_space", x=image, block_size=side)
    return layout.plain(var, tuple(var.shape))


@lowers("Resize")
def resize(lowering: Lowering) -> Value:
    """Nearest neighbours, by a whole factor."""
    value = lowering.value(0)
    asked = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    if (found := {name: lowering.attribute(name) for name in asked}) != asked:  # ONNX's own defaults are others
        raise ValueError(f"{found}; only {asked} is lowered")
    if lowering.has(2):
        factors = [float(factor) for factor in lowering.array(2)]
    else:
        factors = [wanted / size for wanted, size in zip(lowering.array(3).tolist(), value.shape, strict=True)]
    if len(factors) != 4 or factors[:2] != [1, 1] or any(factor != int(factor) for factor in factors):
        raise ValueError(f"scales {factors}; whole ones of height and width are lowered")
    var = lowering.emit(
        "upsample_nearest_neighbor",
        x=layout.as_onnx(lowering.emit, value),
        scale_factor_height=factors[2],
        scale_factor_width=factors[3],
    )
    return layout.plain(var, tuple(var.shape))
