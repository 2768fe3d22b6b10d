"""Core ML packages as they lie on disk: a reader that knows nothing of how they were made."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from snapgen_pl.export.constant import ELEMENTS, Constant, StoredArray, TensorType
from snapgen_pl.export.extra import require
from snapgen_pl.export.weights_file import WeightsFile
from snapgen_pl.whole_files import is_file

if TYPE_CHECKING:
    from coremltools.proto import MIL_pb2, Model_pb2

_OPSETS = {6: "CoreML5", 7: "CoreML6", 8: "CoreML7", 9: "CoreML8", 10: "CoreML9"}  # of a specification version
_MODEL_FOLDER = "@model_path/"  # how a program names the folder of its model file
_AGAIN = "the package is damaged, export it again"


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation of a program.

    Attributes:
        type: such as ``conv``.
        name: its own name, which need not be that of an output.
        inputs: by argument, what it is bound to: names of values, or constants.
        attributes: constants that are no arguments: ``name``, a constant's ``val``, and what iOS 16 decompresses from.
        outputs: what it makes, in order.
    """

    type: str
    name: str
    inputs: Mapping[str, tuple[str | Constant, ...]]
    attributes: Mapping[str, Constant]
    outputs: Mapping[str, TensorType]

    def __str__(self) -> str:
        return f"{self.type} '{self.name}'"

    @property
    def reads(self) -> set[str]:
        """The names of the values that it reads."""
        return {name for bound in self.inputs.values() for name in bound if isinstance(name, str)}


@dataclass(frozen=True, eq=False)
class Package:
    """A package with one ML program of static shapes.

    Attributes:
        path: the ``.mlpackage`` folder.
        inputs: the program's inputs, in order.
        outputs: the program's outputs, in order.
        metadata: what was written as user defined metadata.
        operations: in the order of evaluation.
        spec_version: 7 for iOS 16, 8 for iOS 17, 9 for iOS 18.
        opset: the same of the program, such as ``CoreML7``.
    """

    path: Path
    inputs: Mapping[str, TensorType]
    outputs: Mapping[str, TensorType]
    metadata: Mapping[str, str]
    operations: tuple[Operation, ...]
    spec_version: int
    opset: str

    @property
    def operation_counts(self) -> dict[str, int]:
        """How many operations of each type there are, constants left out, the most frequent first."""
        return dict(Counter(each.type for each in self.operations if each.type != "const").most_common())

    @property
    def stored_bytes(self) -> int:
        """The size of all its files."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())


def read_package(path: Path) -> Package:
    """Reads a saved package; weights stay in their file, mapped into memory.

    Raises:
        ValueError: if it is damaged, or is not an ML program with one function and static shapes; or where coremltools,
            whose protobuf classes are used, is not installed.
    """
    require("coremltools")
    from coremltools.proto import Model_pb2
    from google.protobuf.message import DecodeError

    try:
        file = _model_file(path)
        model = Model_pb2.Model()
        try:
            model.ParseFromString(file.read_bytes())
        except DecodeError as error:
            raise ValueError(f"its {file.name} is no Core ML model; {_AGAIN}") from error
        return _package(path, model, file.parent)
    except ValueError as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def _model_file(path: Path) -> Path:
    manifest = path / "Manifest.json"
    if not manifest.is_file():
        raise ValueError("it holds no Manifest.json, so it is no .mlpackage; give the folder that was saved")
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        relative = content["itemInfoEntries"][content["rootModelIdentifier"]]["path"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"its Manifest.json names no root model; {_AGAIN}") from error
    return _within(path / "Data", str(relative))


def _within(folder: Path, relative: str) -> Path:
    """The file, which must lie in the folder when links and ``..`` are followed."""
    file = folder / relative
    if not file.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"it names the file {relative!r} outside itself; do not use it, export it again")
    if not is_file(file):
        raise ValueError(f"its file {relative!r} is missing; copy the package whole, or export it again")
    return file


def _package(path: Path, model: "Model_pb2.Model", folder: Path) -> Package:
    kind = model.WhichOneof("Type")
    if kind != "mlProgram":
        raise ValueError(f"it is a {kind or 'model of no kind'}, not an ML program; convert to 'mlprogram'")
    version = model.specificationVersion
    if version not in _OPSETS:
        raise ValueError(f"its specification version is {version}, read are {list(_OPSETS)}; target iOS 15 to 26")
    functions = model.mlProgram.functions
    if list(functions) != ["main"] or model.description.functions:
        raise ValueError(f"it has the functions {sorted(functions)}, not 'main' alone; export one function a package")
    main = functions["main"]
    if list(main.block_specializations) != [main.opset] or main.opset not in _OPSETS.values():
        raise ValueError(f"its program is for the operation set '{main.opset}'; target iOS 15 to 26")
    block = main.block_specializations[main.opset]
    inputs = {value.name: _tensor_type(value.type) for value in main.inputs}
    operations = _Operations(folder).read(block)
    made = _check_references(inputs, operations, block.outputs)
    outputs = {name: made[name] for name in block.outputs}
    _check_interface(model.description, inputs, outputs)
    metadata = dict(model.description.metadata.userDefined)
    return Package(path, inputs, outputs, metadata, operations, version, main.opset)


def _tensor_type(declared: "MIL_pb2.ValueType") -> TensorType:
    from coremltools.proto import MIL_pb2

    kind = declared.WhichOneof("type")
    if kind != "tensorType":
        raise ValueError(f"a value is a {kind or 'value without type'}, read are tensors; export without it")
    tensor = declared.tensorType
    try:
        dtype = MIL_pb2.DataType.Name(tensor.dataType)
    except ValueError as error:
        raise ValueError(f"a value has the data type {tensor.dataType}, which is unknown; {_AGAIN}") from error
    if dtype != "STRING" and dtype not in ELEMENTS:
        raise ValueError(f"a value is {dtype}, read are {sorted(ELEMENTS)}; export without it")
    if any(dimension.WhichOneof("dimension") != "constant" for dimension in tensor.dimensions) or tensor.rank < 0:
        raise ValueError("a value has a flexible shape; export with static shapes")
    shape = tuple(int(dimension.constant.size) for dimension in tensor.dimensions)
    if tensor.rank != len(shape):
        raise ValueError(f"a value has {len(shape)} dimensions, declared {tensor.rank}; {_AGAIN}")
    return TensorType(dtype, shape)


class _Operations:
    """Reads operations with their constants; each weights file is opened once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, WeightsFile] = {}

    def read(self, block: "MIL_pb2.Block") -> tuple[Operation, ...]:
        return tuple(self._operation(operation) for operation in block.operations)

    def _operation(self, operation: "MIL_pb2.Operation") -> Operation:
        name = operation.outputs[0].name if operation.outputs else ""
        try:
            if operation.blocks:
                raise ValueError("it holds control flow, which is not read; export without loops and conditions")
            attributes = {key: self._constant(value) for key, value in operation.attributes.items()}
            outputs = {output.name: _tensor_type(output.type) for output in operation.outputs}
            if operation.type == "const" and ("val" not in attributes or len(outputs) != 1):
                raise ValueError(f"it is no constant; {_AGAIN}")
            if operation.type != "const" and "STRING" in (declared.dtype for declared in outputs.values()):
                raise ValueError("it makes a string, which is not read; export without it")
            inputs = {
                key: tuple(self._binding(binding) for binding in argument.arguments)
                for key, argument in operation.inputs.items()
            }
            given = attributes["name"].stored if "name" in attributes else name
            return Operation(operation.type, given if isinstance(given, str) else name, inputs, attributes, outputs)
        except ValueError as error:
            raise ValueError(f"in the operation {operation.type} '{name}', {error}") from error

    def _binding(self, binding: "MIL_pb2.Argument.Binding") -> str | Constant:
        kind = binding.WhichOneof("binding")
        if kind is None:
            raise ValueError(f"an argument is bound to nothing; {_AGAIN}")
        return str(binding.name) if kind == "name" else self._constant(binding.value)

    def _constant(self, value: "MIL_pb2.Value") -> Constant:
        declared, kind = _tensor_type(value.type), value.WhichOneof("value")
        if kind == "blobFileValue" and declared.dtype in ELEMENTS:
            return Constant(
                declared, self._file(value.blobFileValue.fileName).read(value.blobFileValue.offset, declared)
            )
        if kind != "immediateValue" or value.immediateValue.WhichOneof("value") != "tensor":
            raise ValueError(f"a constant {declared} has no value that can be read; {_AGAIN}")
        return Constant(declared, _immediate(value.immediateValue.tensor, declared))

    def _file(self, name: str) -> WeightsFile:
        if name not in self._files:
            if not name.startswith(_MODEL_FOLDER):
                raise ValueError(f"weights lie in {name!r}, not beside the model; do not use it, export it again")
            self._files[name] = WeightsFile(_within(self._folder, name.removeprefix(_MODEL_FOLDER)))
        return self._files[name]


def _immediate(tensor: "MIL_pb2.TensorValue", declared: TensorType) -> StoredArray | str:
    """A constant that the program itself holds; 8 and fewer bits, and fp16, come as bytes."""
    kind = tensor.WhichOneof("value")
    if kind is None:
        raise ValueError(f"a constant {declared} has no value that can be read; {_AGAIN}")
    values = getattr(tensor, kind).values
    if (kind == "strings") != (declared.dtype == "STRING"):
        raise ValueError(f"a constant {declared} holds {kind}; {_AGAIN}")
    if kind == "bytes":
        if len(values) != declared.stored_bytes:
            raise ValueError(f"a constant {declared} holds {len(values)} bytes; {_AGAIN}")
        return np.frombuffer(values, ELEMENTS[declared.dtype].stored or "u1").copy()
    if len(values) != declared.size:
        raise ValueError(f"a constant {declared} holds {len(values)} values; {_AGAIN}")
    if kind == "strings":
        if declared.shape:
            raise ValueError(f"a constant is {declared}, read are single strings; export without it")
        return str(values[0])
    element = ELEMENTS[declared.dtype]
    if element.bits < 8:
        raise ValueError(f"a constant {declared} is not packed in bytes; {_AGAIN}")
    return np.array(values, element.stored)


def _check_references(
    inputs: Mapping[str, TensorType], operations: tuple[Operation, ...], outputs: "MIL_pb2.Block.outputs"
) -> dict[str, TensorType]:
    """All values by name; each must be made once, before it is read."""
    made = dict(inputs)
    for operation in operations:
        for bindings in operation.inputs.values():
            for binding in bindings:
                if isinstance(binding, str) and binding not in made:
                    raise ValueError(f"the operation {operation} reads '{binding}', which nothing made; {_AGAIN}")
        for name, declared in operation.outputs.items():
            if name in made:
                raise ValueError(f"the operation {operation} makes '{name}' a second time; {_AGAIN}")
            made[name] = declared
    for name in outputs:
        if name not in made:
            raise ValueError(f"the output '{name}' is made by nothing; {_AGAIN}")
    return made


def _check_interface(
    description: "Model_pb2.ModelDescription", inputs: Mapping[str, TensorType], outputs: Mapping[str, TensorType]
) -> None:
    """The description, which apps see, must say the same of inputs and outputs as the program."""
    if description.state:
        raise ValueError("it keeps state between predictions; export without states")
    for role, features, declared in (("input", description.input, inputs), ("output", description.output, outputs)):
        if [feature.name for feature in features] != list(declared):
            raise ValueError(
                f"its {role}s are {[feature.name for feature in features]} by its description, {list(declared)} by "
                f"its program; {_AGAIN}"
            )
        for feature in features:
            if feature.type.WhichOneof("Type") != "multiArrayType":
                raise ValueError(f"its {role} '{feature.name}' is no array; export it as a tensor")
            array = feature.type.multiArrayType
            if array.WhichOneof("ShapeFlexibility") is not None:
                raise ValueError(f"its {role} '{feature.name}' has a flexible shape; export with static shapes")
            described = TensorType(array.ArrayDataType.Name(array.dataType), tuple(array.shape))
            if described != declared[feature.name]:
                raise ValueError(
                    f"its {role} '{feature.name}' is {described} by its description, {declared[feature.name]} by its "
                    f"program; {_AGAIN}"
                )
