"""ONNX -> MIL: a table of one small function an operator type, and what they share.

coremltools has no ONNX frontend. Operators register with :func:`lowers`; one without a function is an error that names
it and its node. Constants are folded before (:mod:`snapgen_pl.export.mil.graph`), transposes and reshapes are names
(:mod:`snapgen_pl.export.mil.layout`).
"""

import itertools
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from coremltools import target as Target
from coremltools.converters.mil import Builder as mb  # noqa: N813  (what all code of MIL calls it)
from coremltools.converters.mil.mil import Function, Program, types

from snapgen_pl.export.limits import LEAST_HALF, MOST_HALF, to_half
from snapgen_pl.export.mil import layout
from snapgen_pl.export.mil.graph import Array, Node, OnnxGraph, TensorType
from snapgen_pl.export.mil.layout import Value, Var
from snapgen_pl.export.options import ISLAND_INPUT, Options

Operand = Value | Array


@dataclass
class Lowering:
    """A graph on its way to a program.

    Attributes:
        graph: the graph.
        options: how.
        values: what was made so far, and the graph's constants, by ONNX's names.
        producers: the node that makes a value.
        current: the node that is being lowered; None between nodes.
        shared: what several nodes need and one of them made.
    """

    graph: OnnxGraph
    options: Options
    values: dict[str, Operand]
    producers: Mapping[str, Node]
    current: Node | None = None
    shared: dict[tuple[object, ...], Any] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set)

    def emit(self, op: str, /, **arguments: Any) -> Any:
        """Adds an operator of MIL, named after the node that it is for."""
        return getattr(mb, op)(**arguments, name=self._name())

    @property
    def node(self) -> Node:
        """The node that is being lowered."""
        assert self.current is not None
        return self.current

    @property
    def dtype(self) -> type[np.floating[Any]]:
        """The type of results."""
        return np.float16 if self.options.half else np.float32

    def operand(self, place: int) -> Operand:
        """An input of the node, known or not."""
        return self.values[self._given(place)]

    def variable(self, place: int) -> Value:
        """An input of the node as a variable."""
        operand = self.operand(place)
        if isinstance(operand, Value):
            return operand
        return layout.plain(self.emit("const", val=self.cast_array(operand)), operand.shape)

    def value(self, place: int) -> Value:
        """An input of the node as a variable of the results' type: out of the island, where it comes from there."""
        return self.out_of_island(self.variable(place))

    def array(self, place: int) -> Array:
        """An input of the node that must be known.

        Raises:
            ValueError: where it is not.
        """
        operand = self.operand(place)
        if isinstance(operand, Value):
            raise ValueError(f"{self.node}: input {place} must be a constant, and is {self._given(place)!r}")
        return operand

    def has(self, place: int) -> bool:
        """Whether the node has an optional input."""
        return place < len(self.node.inputs) and self.node.inputs[place] != ""

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute of the node."""
        return self.node.attributes.get(name, default)

    def read_as(self, name: str, op: str, place: int) -> bool:
        """Whether a value is read, and only as this input of operators of this type."""
        uses = [(node.op, at) for node in self.graph.nodes for at, given in enumerate(node.inputs) if given == name]
        return bool(uses) and set(uses) == {(op, place)}

    def require(self, **values: Any) -> None:
        """Refuses a node with other attributes than these; those that it has not count as equal.

        Raises:
            ValueError: naming the first.
        """
        for name, value in values.items():
            if (found := self.attribute(name, value)) != value:
                raise ValueError(f"{self.node}: {name} is {found!r}; only {value!r} is lowered")

    def in_island(self, operand: Operand) -> bool:
        """Whether it was computed of the timestep alone."""
        return self.options.half and isinstance(operand, Value) and operand.var.dtype == types.fp32

    def out_of_island(self, value: Value) -> Value:
        """The value in the type of results."""
        if not self.in_island(value):
            return value
        return Value(self.emit("cast", x=value.var, dtype="fp16"), value.shape, value.order)

    def cast_array(self, array: Array, island: bool = False) -> Array:
        """A constant in the types that Core ML has, of numbers that the Neural Engine takes.

        Infinities mean "not at all" in masks, for which 4e4 is enough.
        """
        if not np.issubdtype(array.dtype, np.floating):
            return array if array.dtype == np.bool_ else array.astype(np.int32)
        array = np.where(np.isinf(array), np.sign(array) * MOST_HALF, array)
        if island or not self.options.half:
            return array.astype(np.float32)
        return to_half(array)

    def epsilon(self, value: float) -> np.floating[Any]:
        """An epsilon of a norm: exact where it may have a type of its own (iOS 17), else one that float16 keeps."""
        if not self.options.half or self.options.target >= 17:
            return np.float32(value)
        return np.float16(max(value, LEAST_HALF))

    def _given(self, place: int) -> str:
        if not self.has(place):
            raise ValueError(f"{self.node} lacks input {place}")
        return self.node.inputs[place]

    def _name(self) -> str:
        """The node's first output, and numbers after it for the operators that it takes besides."""
        base = re.sub(r"\W", "_", self.current.outputs[0] if self.current else "output")
        base = base if re.match("[a-zA-Z_]", base) else f"_{base}"
        names = (f"{base}__{count}" if count else base for count in itertools.count())
        name = next(name for name in names if name not in self._names)
        self._names.add(name)
        return name


class Place(NamedTuple):
    """Where a value of the graph lies in a program.

    Attributes:
        var: the name of its variable.
        shape: as ONNX has it.
        order: its axes as they lie in memory, see :class:`~snapgen_pl.export.mil.layout.Value`.
    """

    var: str
    shape: tuple[int, ...]
    order: tuple[int, ...]


class Lowered(NamedTuple):
    """A graph as a program.

    Attributes:
        program: with the function ``main``.
        places: of the values that nodes make, by ONNX's names.
    """

    program: Program
    places: dict[str, Place]


Rule = Callable[[Lowering], Value | Sequence[Value]]
RULES: dict[str, Rule] = {}


def lowers(*ops: str) -> Callable[[Rule], Rule]:
    """Registers a function for operator types of ONNX; it reads the node from the lowering and gives its outputs."""

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(ops, rule))
        return rule

    return register


def lower(graph: OnnxGraph, options: Options) -> Lowered:
    """Lowers a graph.

    Args:
        graph: of standard operators and fixed shapes.
        options: how.

    Raises:
        ValueError: for an operator that there is no function for, or one with attributes or inputs that Core ML cannot
            have; names the operator and its node.
    """
    options.check()
    lowering = Lowering(
        graph, options, dict(graph.constants), {name: node for node in graph.nodes for name in node.outputs}
    )
    program = Program()
    placeholders = OrderedDict((given.name, _placeholder(given, options)) for given in graph.inputs)
    with Function(placeholders, opset_version=_target(options)) as function:
        for given in graph.inputs:
            lowering.values[given.name] = layout.plain(function.inputs[given.name], given.shape)
        for node in graph.nodes:
            _lower_node(lowering, node)
        function.set_outputs([_output(lowering, wanted) for wanted in graph.outputs])
        program.add_function("main", function)
    made = {name: lowering.values[name] for node in graph.nodes for name in node.outputs}
    places = {
        name: Place(value.var.name, value.shape, value.order)
        for name, value in made.items()
        if isinstance(value, Value)
    }
    return Lowered(program, places)


def _lower_node(lowering: Lowering, node: Node) -> None:
    rule = RULES.get(node.op)
    if rule is None:
        raise ValueError(f"{node}: there is no lowering for {node.op}; add one to snapgen_pl.export.mil")
    lowering.current = node
    try:
        made = rule(lowering)
        values = [made] if isinstance(made, Value) else list(made)
        if len(values) != len(node.outputs):
            raise ValueError(f"{len(node.outputs)} outputs are asked for; {len(values)} are lowered")
    except (ValueError, TypeError, AssertionError, KeyError, IndexError) as error:
        text = str(error) if str(error).startswith(str(node)) else f"{node}: {error}"
        raise ValueError(text) from error
    lowering.values.update(zip(node.outputs, values, strict=True))


def _output(lowering: Lowering, wanted: TensorType) -> Var:
    operand = lowering.values[wanted.name]
    if not isinstance(operand, Value):
        raise ValueError(f"output {wanted.name} depends on no input")
    lowering.current = None
    value = lowering.out_of_island(operand)
    var = layout.as_onnx(lowering.emit, value)
    # An identity, for the name that the graph gives it.
    return mb.identity(x=var, name=wanted.name)


def _placeholder(given: TensorType, options: Options) -> Any:
    return mb.placeholder(given.shape, dtype=_input_dtype(given, options))


def _input_dtype(given: TensorType, options: Options) -> Any:
    if np.issubdtype(given.dtype, np.integer):
        return types.int32
    if not np.issubdtype(given.dtype, np.floating):
        raise ValueError(f"input {given.name} is {given.dtype}; Core ML takes floats and integers")
    return types.fp16 if options.half and given.name != ISLAND_INPUT else types.fp32


def _target(options: Options) -> Any:
    return getattr(Target, f"iOS{options.target}")
