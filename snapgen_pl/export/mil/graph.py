"""An ONNX graph, read: nodes with plain attributes, shapes of all values, and what is known without any input."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

Array = NDArray[Any]


class Node(NamedTuple):
    """An operator.

    Attributes:
        op: its type.
        name: for messages.
        inputs: names; an empty one is an optional input that is left out.
        outputs: names.
        attributes: by name, as Python values.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.op} {self.name!r}"


class TensorType(NamedTuple):
    """What a graph takes or gives.

    Attributes:
        name: of the value.
        dtype: numpy's.
        shape: fixed.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class OnnxGraph(NamedTuple):
    """A graph.

    Attributes:
        nodes: in the order of execution, without those whose outputs are known.
        constants: the known values.
        inputs: what it takes.
        outputs: what it gives.
        metadata: of the file.
    """

    nodes: tuple[Node, ...]
    constants: Mapping[str, Array]
    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]
    metadata: Mapping[str, str]


def read_graph(path: Path) -> OnnxGraph:
    """Reads a file and computes what depends on no input.

    Raises:
        ValueError: where an input or output has no fixed shape, or an operator is of another domain than ONNX's.
    """
    model = onnx.load(path)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = []
    for proto in model.graph.node:
        if proto.domain:
            raise ValueError(f"{path}: {proto.op_type} {proto.name!r} is of domain {proto.domain}, not of ONNX")
        known = {name: constants[name] for name in proto.input if name in constants}
        if all(name in known for name in proto.input if name):
            constants |= _computed(model, proto, known)
        else:
            nodes.append(_node(proto))
    return OnnxGraph(
        tuple(nodes),
        constants,
        tuple(_tensor_type(path, info) for info in model.graph.input),
        tuple(_tensor_type(path, info) for info in model.graph.output),
        {entry.key: entry.value for entry in model.metadata_props},
    )


def _computed(model: ModelProto, proto: NodeProto, known: Mapping[str, Array]) -> dict[str, Array]:
    outputs = ReferenceEvaluator(proto, opsets={"": model.opset_import[0].version}).run(None, dict(known))
    return dict(zip(proto.output, map(np.asarray, outputs), strict=True))


def _node(proto: NodeProto) -> Node:
    attributes = {attribute.name: _plain(helper.get_attribute_value(attribute)) for attribute in proto.attribute}
    return Node(proto.op_type, proto.name or proto.output[0], tuple(proto.input), tuple(proto.output), attributes)


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _tensor_type(path: Path, info: ValueInfoProto) -> TensorType:
    tensor = info.type.tensor_type
    shape = tuple(size.dim_value for size in tensor.shape.dim)
    if not all(shape):
        raise ValueError(f"{path}: {info.name} has no fixed shape; export it with one")
    return TensorType(info.name, helper.tensor_dtype_to_np_dtype(tensor.elem_type), shape)
