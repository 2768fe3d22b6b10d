"""Operators that work element by element, on tensors as they lie."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from coremltools.converters.mil.mil import types

from snapgen_pl.export.mil import layout
from snapgen_pl.export.mil.graph import Array
from snapgen_pl.export.mil.layout import Value, Var
from snapgen_pl.export.mil.lowering import Lowering, Operand, lowers

UNARY = {
    "Abs": "abs",
    "Ceil": "ceil",
    "Cos": "cos",
    "Erf": "erf",
    "Exp": "exp",
    "Floor": "floor",
    "Not": "logical_not",
    "Relu": "relu",
    "Round": "round",
    "Sigmoid": "sigmoid",
    "Sign": "sign",
    "Sin": "sin",
    "Sqrt": "sqrt",
    "Softplus": "softplus",
    "Tanh": "tanh",
}
BINARY = {
    "Add": "add",
    "And": "logical_and",
    "Div": "real_div",
    "Equal": "equal",
    "Greater": "greater",
    "GreaterOrEqual": "greater_equal",
    "Less": "less",
    "LessOrEqual": "less_equal",
    "Max": "maximum",
    "Min": "minimum",
    "Mul": "mul",
    "Or": "logical_or",
    "Pow": "pow",
    "Sub": "sub",
    "Xor": "logical_xor",
}


@lowers(*UNARY)
def unary(lowering: Lowering) -> Value:
    """A function of one tensor."""
    return apply(lowering, UNARY[lowering.node.op], lowering.variable(0))


@lowers(*(op for op in BINARY if op not in ("Mul", "Pow")))
def binary(lowering: Lowering) -> Value:
    """A function of two tensors, broadcast as ONNX does."""
    if len(lowering.node.inputs) != 2:
        raise ValueError(f"{len(lowering.node.inputs)} inputs; 2 are lowered")
    return combine(lowering, BINARY[lowering.node.op], lowering.operand(0), lowering.operand(1))


@lowers("Mul")
def multiply(lowering: Lowering) -> Value:
    """A product; x * sigmoid(x) is MIL's silu."""
    for place, name in enumerate(lowering.node.inputs):
        producer = lowering.producers.get(name)
        if producer is not None and producer.op == "Sigmoid":
            other = lowering.node.inputs[1 - place]
            if producer.inputs[0] == other:
                return apply(lowering, "silu", lowering.variable(1 - place))
    return combine(lowering, "mul", lowering.operand(0), lowering.operand(1))


@lowers("Pow")
def power(lowering: Lowering) -> Value:
    """A power; squares and roots are operators of their own, which need no logarithm."""
    operand, exponent = lowering.operand(0), lowering.operand(1)
    if isinstance(operand, Value) and not isinstance(exponent, Value) and exponent.size == 1:
        special = {2.0: "square", 0.5: "sqrt"}.get(float(exponent.item()))
        if special is not None:
            return apply(lowering, special, operand)
    return combine(lowering, "pow", operand, exponent)


@lowers("Neg")
def negate(lowering: Lowering) -> Value:
    """-x."""
    return scaled(lowering, lowering.variable(0), -1)


@lowers("Reciprocal")
def reciprocal(lowering: Lowering) -> Value:
    """1 / x, and of a root MIL's rsqrt; with no epsilon, of which the defaults are 1e-4 and 1e-12."""
    producer = lowering.producers.get(lowering.node.inputs[0])
    if producer is not None and producer.op == "Sqrt":
        root_of = lowering.values[producer.inputs[0]]
        assert isinstance(root_of, Value)
        return apply(lowering, "rsqrt", root_of, epsilon=_zero(lowering, root_of))
    value = lowering.variable(0)
    return apply(lowering, "inverse", value, epsilon=_zero(lowering, value))


@lowers("Log")
def logarithm(lowering: Lowering) -> Value:
    """ln(x), with no epsilon, of which the default is 1e-45."""
    value = lowering.variable(0)
    return apply(lowering, "log", value, epsilon=_zero(lowering, value))


@lowers("Gelu")
def gelu(lowering: Lowering) -> Value:
    """Exact, or by tanh."""
    mode = {"none": "EXACT", "tanh": "TANH_APPROXIMATION"}[lowering.attribute("approximate", "none")]
    return apply(lowering, "gelu", lowering.variable(0), mode=mode)


@lowers("Clip")
def clip(lowering: Lowering) -> Value:
    """Between two bounds, each of which may be left out."""
    value: Operand = lowering.variable(0)
    for place, operator in ((1, "maximum"), (2, "minimum")):
        if lowering.has(place):
            value = combine(lowering, operator, value, lowering.array(place))
    assert isinstance(value, Value)
    return value


@lowers("Cast")
def cast(lowering: Lowering) -> Value:
    """To float, integer or bool; floats are all of the results' type, and integers of 32 bits."""
    from onnx import helper

    value = lowering.variable(0)
    wanted = np.dtype(helper.tensor_dtype_to_np_dtype(lowering.attribute("to")))
    if np.issubdtype(wanted, np.floating):
        if lowering.in_island(value):
            return value
        dtype = "fp16" if lowering.options.half else "fp32"
    else:
        dtype = "bool" if wanted == np.bool_ else "int32"
    return apply(lowering, "cast", value, dtype=dtype)


@lowers("Where")
def where(lowering: Lowering) -> Value:
    """One tensor where a condition holds, another elsewhere."""
    return combine(lowering, "select", *(lowering.operand(place) for place in range(3)), names=("cond", "a", "b"))


@lowers("Identity", "Dropout")
def identity(lowering: Lowering) -> Value:
    """Nothing."""
    return lowering.variable(0)


def apply(lowering: Lowering, operator: str, value: Value, **arguments: Any) -> Value:
    """An operator of one tensor, as it lies."""
    return Value(lowering.emit(operator, x=value.var, **arguments), value.shape, value.order)


def scaled(lowering: Lowering, value: Value, factor: float) -> Value:
    """The tensor times a number."""
    return value if factor == 1 else combine(lowering, "mul", value, np.asarray(factor, np.float32))


def combine(lowering: Lowering, operator: str, *operands: Operand, names: Sequence[str] = ("x", "y")) -> Value:
    """An operator of several tensors, broadcast against each other as ONNX does, on the layout of the largest.

    Args:
        lowering: where to.
        operator: MIL's.
        operands: known or not, at least one of them not.
        names: of the operator's arguments.
    """
    shape = np.broadcast_shapes(*(operand.shape for operand in operands))
    island = _all_in_island(lowering, operands)
    prepared = [_prepared(lowering, operand, len(shape), island) for operand in operands]
    lead = max((operand for operand in prepared if isinstance(operand, Value)), key=lambda value: np.prod(value.shape))
    if lead.shape != shape:  # none is as large as the result
        lead = Value(None, shape, layout.plain_order(shape))
        goal = shape
    else:
        goal = _meeting_shape(lead, prepared)
    arguments = [_met(lowering, operand, lead, goal) for operand in prepared]
    var = lowering.emit(operator, **dict(zip(names, arguments, strict=True)))
    return Value(var, shape, lead.order)


def _prepared(lowering: Lowering, operand: Operand, rank: int, island: bool) -> Operand:
    """An operand in its final type, with as many axes as the result."""
    shape = (1,) * (rank - len(operand.shape)) + tuple(operand.shape)
    if isinstance(operand, Value):
        return layout.renamed(operand if island else lowering.out_of_island(operand), shape)
    return lowering.cast_array(operand, island).reshape(shape)


def _meeting_shape(lead: Value, operands: Sequence[Operand]) -> layout.Shape:
    """The largest operand's own shape where all others can meet it so, else one with its axes apart."""
    own = tuple(lead.var.shape)
    covers = [{axis for axis in lead.order if operand.shape[axis] > 1} for operand in operands]
    meets = all(layout.broadcast_part(lead, covered, own) is not None for covered in covers)
    return own if meets else layout.spread_shape(lead)


def _met(lowering: Lowering, operand: Operand, lead: Value, goal: layout.Shape) -> Var | Array:
    """An operand as it meets the others: its axes in the largest one's order, under the part of the shape it has."""
    covered = {axis for axis in lead.order if operand.shape[axis] > 1}
    if not isinstance(operand, Value) and operand.size == 1:
        return operand.reshape(())[()]
    part = layout.broadcast_part(lead, covered, goal)
    assert part is not None
    order = [axis for axis in lead.order if axis in covered]
    if isinstance(operand, Value):
        return layout.view(lowering.emit, layout.permuted(lowering.emit, operand, order), part)
    rest = [axis for axis in range(operand.ndim) if axis not in order]
    return np.ascontiguousarray(operand.transpose(rest + order)).reshape(part)


def _all_in_island(lowering: Lowering, operands: Sequence[Operand]) -> bool:
    """Whether all that is of floating numbers was computed of the timestep alone."""
    floating = [value for value in operands if isinstance(value, Value) and value.var.dtype in (types.fp16, types.fp32)]
    return bool(floating) and all(lowering.in_island(value) for value in floating)


def _zero(lowering: Lowering, value: Value) -> np.floating[Any]:
    return np.float32(0) if lowering.in_island(value) else lowering.dtype(0)
