import json
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools import libmilstoragepython
from coremltools.converters.mil import Builder as mb  # noqa: N813 (coremltools' own name for it)
from coremltools.converters.mil.mil import Var, types
from coremltools.proto import Model_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from snapgen_pl.export.constant import ELEMENTS, Constant, TensorType, unpack
from snapgen_pl.export.package import Package, read_package
from snapgen_pl.export.weights_file import WeightsFile
from tests.export.saved_program import MODEL, WEIGHTS, edit, model_of, saved

WEIGHT = np.random.default_rng(0).standard_normal((8, 4, 3, 3)).astype(np.float16)
BIAS = np.arange(8, dtype=np.float16)  # few values: held by the program


def build(x: Var) -> list[Var]:
    y = mb.conv(x=x, weight=WEIGHT, bias=BIAS, pad_type="same", name="conv")
    parts = mb.split(x=y, num_splits=2, axis=1, name="parts")
    return [mb.cast(x=mb.concat(values=parts[::-1], axis=1, name="joined"), dtype="fp32", name="velocity")]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    model = model_of({"sample": ((1, 4, 8, 6), types.fp16)}, lambda sample: build(sample))
    model.user_defined_metadata["steps"] = "4"
    return saved(tmp_path_factory.mktemp("package"), model)


@pytest.fixture
def copy(package: Package, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(package.path, tmp_path / "copy.mlpackage"))


def test_a_package_says_what_it_takes_makes_and_is(package: Package) -> None:
    assert package.inputs == {"sample": TensorType("FLOAT16", (1, 4, 8, 6))}
    assert package.outputs == {"velocity": TensorType("FLOAT32", (1, 8, 8, 6))}
    assert package.metadata["steps"] == "4"
    assert package.metadata["com.github.apple.coremltools.version"] == ct.__version__
    assert (package.spec_version, package.opset) == (8, "CoreML7")


@pytest.mark.parametrize(
    ("target", "version", "opset"),
    [(ct.target.iOS16, 7, "CoreML6"), (ct.target.iOS18, 9, "CoreML8"), (ct.target.iOS26, 10, "CoreML9")],
)
def test_it_says_what_it_is_for(tmp_path: Path, target: ct.target, version: int, opset: str) -> None:
    model = model_of({"x": ((2, 3), types.fp32)}, lambda x: [mb.relu(x=x)], target)
    found = saved(tmp_path, model)
    assert (found.spec_version, found.opset) == (version, opset)


def test_operations_come_in_order_with_all_that_they_are_given(package: Package) -> None:
    conv, split, concat, cast = [operation for operation in package.operations if operation.type != "const"]
    assert [str(o) for o in (conv, split, concat, cast)] == [
        "conv 'conv'", "split 'parts'", "concat 'joined'", "cast 'velocity'"
    ]  # fmt: skip
    assert set(conv.inputs) == {"x", "weight", "bias", "strides", "pad_type", "pad", "dilations", "groups"}
    assert conv.inputs["x"] == ("sample",)
    first, second = split.outputs
    assert split.outputs == dict.fromkeys((first, second), TensorType("FLOAT16", (1, 4, 8, 6)))
    assert concat.inputs["values"] == (second, first)


def constants(package: Package) -> dict[str, Constant]:
    return {next(iter(o.outputs)): o.attributes["val"] for o in package.operations if o.type == "const"}


def test_constants_are_what_was_written(package: Package) -> None:
    conv = next(operation for operation in package.operations if operation.type == "conv")
    values = {key: constants(package)[str(name[0])] for key, name in conv.inputs.items() if key != "x"}
    assert torch.equal(values["weight"].value(), torch.from_numpy(WEIGHT))
    assert torch.equal(values["bias"].value(), torch.from_numpy(BIAS))
    assert values["pad_type"].value() == "same"
    assert torch.equal(values["strides"].value(), torch.tensor([1, 1], dtype=torch.int32))
    assert torch.equal(values["groups"].value(), torch.tensor(1, dtype=torch.int32))


def test_weights_stay_in_their_file(package: Package) -> None:
    stored = next(one.stored for one in constants(package).values() if one.type.size == WEIGHT.size)
    assert isinstance(stored, np.memmap)
    value = Constant(TensorType("FLOAT16", WEIGHT.shape), stored).value()
    assert np.shares_memory(value.numpy(), stored)


def test_constants_inside_the_program_have_every_type(tmp_path: Path) -> None:
    """Those of 8 and fewer bits, and fp16, lie there as bytes."""
    narrow = {"INT8": np.int8([-128, 5]), "UINT8": np.uint8([255, 5]), "INT16": np.int16([-(2**15), 5])}
    wide = {"UINT16": np.uint16([2**16 - 1, 5]), "INT32": np.int32([-(2**31), 5]), "FLOAT16": np.float16([0.1, 65504])}
    values = {"BOOL": np.array([True, False]), "FLOAT32": np.float32([0.1, -np.inf]), **narrow, **wide}

    def build(x: Var) -> list[Var]:
        zero = mb.cast(x=x, dtype="int32")
        gathered = [
            mb.gather(x=value, indices=zero) for name, value in values.items() if name not in ("BOOL", "FLOAT32")
        ]
        casts = [mb.cast(x=one, dtype="fp32") for one in gathered]
        return [mb.select(cond=values["BOOL"], a=x, b=values["FLOAT32"]), *casts]

    found: dict[str, list[np.ndarray]] = {}
    for one in constants(saved(tmp_path, model_of({"x": ((2,), types.fp32)}, build))).values():
        value = one.value()
        if isinstance(value, torch.Tensor):
            found.setdefault(one.type.dtype, []).append(value.numpy())
    for dtype, expected in values.items():
        assert any(np.array_equal(one, expected) for one in found[dtype]), dtype


WRITERS = {
    "FLOAT16": ("fp16", np.uint16), "FLOAT32": ("float", np.float32), "INT8": ("int8", np.int8),
    "UINT8": ("uint8", np.uint8), "INT16": ("int16", np.int16), "UINT16": ("uint16", np.uint16),
    "INT32": ("int32", np.int32), "UINT32": ("uint32", np.uint32), "INT4": ("int4", np.int8),
    "UINT1": ("uint1", np.uint8), "UINT2": ("uint2", np.uint8), "UINT3": ("uint3", np.uint8),
    "UINT4": ("uint4", np.uint8), "UINT6": ("uint6", np.uint8),
}  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.data(), st.sampled_from(sorted(WRITERS)), st.integers(1, 3), st.integers(1, 13))
def test_numbers_are_those_that_coremltools_wrote(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, dtype: str, rows: int, columns: int
) -> None:
    writer, kind = WRITERS[dtype]
    element = ELEMENTS[dtype]
    low, high = (element.lowest, element.highest) if "FLOAT" not in dtype else (0, 30000)
    drawn = st.lists(st.integers(low, high), min_size=rows * columns, max_size=rows * columns)
    arrays = [np.array(data.draw(drawn), kind) for _ in range(2)]
    path = tmp_path_factory.mktemp("blobs") / "weight.bin"
    blobs = libmilstoragepython._BlobStorageWriter(str(path))
    offsets = [getattr(blobs, f"write_{writer}_data")(array) for array in arrays]
    del blobs  # which writes the header
    declared = TensorType(dtype, (rows, columns))
    for array, offset in zip(arrays, offsets, strict=True):
        found = Constant(declared, WeightsFile(path).read(offset, declared)).value()
        expected = array.view(np.float16) if dtype == "FLOAT16" else array
        assert found.dtype == element.held
        np.testing.assert_array_equal(found.numpy(), expected.reshape(rows, columns))


def test_too_few_bytes_do_not_unpack() -> None:
    assert unpack(np.array([0b11100100], np.uint8), 2, 4).tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="1 bytes do not hold 3 numbers of 3 bits"):
        unpack(np.zeros(1, np.uint8), 3, 3)


def refusal(path: Path) -> str:
    with pytest.raises(ValueError, match="cannot read") as caught:
        read_package(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def patched(path: Path, offset: int, layout: str, *values: int) -> None:
    content = bytearray(path.read_bytes())
    struct.pack_into(layout, content, offset, *values)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("size", "reason"),
    [(10, "truncated to its header"), (0, "truncated"), (100, "out of its 100 bytes"), (400, "out of the file's 400")],
)
def test_truncated_weights_are_refused(copy: Path, size: int, reason: str) -> None:
    (copy / WEIGHTS).write_bytes((copy / WEIGHTS).read_bytes()[:size])
    assert reason in refusal(copy)


@pytest.mark.parametrize(
    ("offset", "layout", "value", "reason"),
    [
        (4, "<I", 3, "of version 3, not 2"),
        (64, "<I", 0xDEADBEEE, "begins with 0xdeadbeee"),
        (68, "<I", 2, "holds FLOAT32, declared FLOAT16 (8, 4, 3, 3)"),
        (68, "<I", 99, "holds type 99"),
        (72, "<Q", 574, "has 574 bytes"),
        (72, "<Q", 2**63, "out of the file's"),
        (80, "<Q", 2**63, "out of the file's"),
        (80, "<Q", 64, "out of the file's"),
        (88, "<Q", 4, "4 bits of padding"),
    ],
)
def test_damaged_weights_are_refused(copy: Path, offset: int, layout: str, value: int, reason: str) -> None:
    patched(copy / WEIGHTS, offset, layout, value)
    found = refusal(copy)
    assert reason in found
    assert "export it again" in found
    assert "const 'conv_weight_0'" in found or "version" in found


def test_weights_that_begin_between_the_marks_are_refused(copy: Path) -> None:
    (copy / WEIGHTS).write_bytes((copy / WEIGHTS).read_bytes() + bytes(64))  # so that they end inside the file
    patched(copy / WEIGHTS, 80, "<Q", 129)
    assert "has its 576 bytes at 129" in refusal(copy)


def main(model: Model_pb2.Model) -> Model_pb2.Model:
    return model.mlProgram.functions["main"]


def block(model: Model_pb2.Model) -> Model_pb2.Model:
    return main(model).block_specializations["CoreML7"]


def operation(model: Model_pb2.Model, name: str) -> Model_pb2.Model:
    return next(one for one in block(model).operations if one.outputs[0].name == name)


def blob(model: Model_pb2.Model) -> Model_pb2.Model:
    return operation(model, "conv_weight_0").attributes["val"].blobFileValue


def bias(model: Model_pb2.Model) -> Model_pb2.Model:
    return operation(model, "conv_bias_0").attributes["val"]


def strides(model: Model_pb2.Model) -> Model_pb2.Model:
    return operation(model, "conv_strides_0").attributes["val"]


EDITS: dict[str, tuple[Callable[[Model_pb2.Model], object], str]] = {
    "a neural network": (lambda m: m.neuralNetwork.SetInParent(), "it is a neuralNetwork, not an ML program"),
    "no program": (lambda m: m.ClearField("mlProgram"), "it is a model of no kind"),
    "a new specification": (lambda m: setattr(m, "specificationVersion", 99), "specification version is 99"),
    "two functions": (
        lambda m: m.mlProgram.functions["second"].CopyFrom(main(m)),
        "the functions ['main', 'second'], not 'main' alone",
    ),
    "described functions": (lambda m: m.description.functions.add(name="main"), "not 'main' alone"),
    "an unknown set of operations": (lambda m: setattr(main(m), "opset", "CoreML99"), "operation set 'CoreML99'"),
    "a flexible input": (
        lambda m: main(m).inputs[0].type.tensorType.dimensions[0].unknown.SetInParent(),
        "a flexible shape",
    ),
    "a described range": (
        lambda m: m.description.input[0].type.multiArrayType.shapeRange.SetInParent(),
        "its input 'sample' has a flexible shape",
    ),
    "a state": (lambda m: m.description.state.add(name="cache"), "keeps state"),
    "an image": (lambda m: m.description.input[0].type.imageType.SetInParent(), "'sample' is no array"),
    "another description": (
        lambda m: m.description.input[0].type.multiArrayType.shape.append(1),
        "'sample' is FLOAT16 (1, 4, 8, 6, 1) by its description, FLOAT16 (1, 4, 8, 6) by its program",
    ),
    "another described type": (
        lambda m: setattr(m.description.output[0].type.multiArrayType, "dataType", 65552),
        "'velocity' is FLOAT16 (1, 8, 8, 6) by its description, FLOAT32",
    ),
    "another described name": (
        lambda m: setattr(m.description.output[0], "name", "noise"),
        "its outputs are ['noise'] by its description, ['velocity'] by its program",
    ),
    "control flow": (
        lambda m: operation(m, "conv").blocks.add(),
        "in the operation conv 'conv', it holds control flow",
    ),
    "a value from nowhere": (
        lambda m: setattr(operation(m, "conv").inputs["x"].arguments[0], "name", "lost"),
        "conv 'conv' reads 'lost', which nothing made",
    ),
    "a name twice": (
        lambda m: setattr(operation(m, "velocity").outputs[0], "name", "conv"),
        "makes 'conv' a second time",
    ),
    "an output from nowhere": (lambda m: block(m).outputs.append("lost"), "the output 'lost' is made by nothing"),
    "an argument without binding": (lambda m: operation(m, "conv").inputs["x"].arguments.add(), "bound to nothing"),
    "a list": (
        lambda m: operation(m, "conv").outputs[0].type.listType.SetInParent(),
        "in the operation conv 'conv', a value is a listType",
    ),
    "an unknown type": (
        lambda m: setattr(operation(m, "conv").outputs[0].type.tensorType, "dataType", 77),
        "data type 77",
    ),
    "double precision": (
        lambda m: setattr(operation(m, "conv").outputs[0].type.tensorType, "dataType", 12),
        "a value is FLOAT64",
    ),
    "a string made": (
        lambda m: setattr(operation(m, "conv").outputs[0].type.tensorType, "dataType", 2),
        "it makes a string",
    ),
    "another rank": (
        lambda m: setattr(operation(m, "conv").outputs[0].type.tensorType, "rank", 3),
        "4 dimensions, declared 3",
    ),
    "a constant without value": (
        lambda m: operation(m, "conv_weight_0").attributes["val"].ClearField("blobFileValue"),
        "a constant FLOAT16 (8, 4, 3, 3) has no value",
    ),
    "no constant": (lambda m: operation(m, "conv_weight_0").attributes.pop("val"), "it is no constant"),
    "bytes missing": (
        lambda m: setattr(bias(m).immediateValue.tensor.bytes, "values", b"\0" * 15),
        "a constant FLOAT16 (8,) holds 15 bytes",
    ),
    "values missing": (
        lambda m: strides(m).immediateValue.tensor.ints.values.pop(),
        "a constant INT32 (2,) holds 1 values",
    ),
    "strings for numbers": (
        lambda m: strides(m).immediateValue.tensor.strings.values.extend("ab"),
        "a constant INT32 (2,) holds strings",
    ),
    "nothing for numbers": (
        lambda m: strides(m).immediateValue.tensor.Clear(),
        "a constant INT32 (2,) has no value that can be read",
    ),
    "weights of another size": (
        lambda m: setattr(
            operation(m, "conv_weight_0").attributes["val"].type.tensorType.dimensions[0].constant, "size", 9
        ),
        "has 576 bytes and 0 bits of padding, FLOAT16 (9, 4, 3, 3) takes 648",
    ),
    "weights beyond the file": (lambda m: setattr(blob(m), "offset", 2**40), "the blob at 1099511627776 of weight.bin"),
    "weights in the header": (lambda m: setattr(blob(m), "offset", 0), "the blob at 0 of weight.bin is out of"),
    "weights elsewhere": (lambda m: setattr(blob(m), "fileName", "/etc/hostname"), "not beside the model"),
    "weights above": (
        lambda m: setattr(blob(m), "fileName", "@model_path/../../../../outside.bin"),
        "outside itself; do not use it",
    ),
    "weights at a root": (lambda m: setattr(blob(m), "fileName", "@model_path//etc/hostname"), "outside itself"),
    "weights missing": (lambda m: setattr(blob(m), "fileName", "@model_path/weights/w.bin"), "'weights/w.bin' is miss"),
}


@pytest.mark.parametrize(("change", "reason"), EDITS.values(), ids=EDITS)
def test_a_foreign_or_damaged_model_is_refused(
    copy: Path, change: Callable[[Model_pb2.Model], object], reason: str
) -> None:
    (copy.parent / "outside.bin").write_bytes((copy / WEIGHTS).read_bytes())
    edit(copy, change)
    assert reason in refusal(copy)


def test_a_model_file_that_is_none_is_refused(copy: Path) -> None:
    (copy / MODEL).write_bytes(b"\xff" * 300)
    assert "model.mlmodel is no Core ML model" in refusal(copy)
    (copy / MODEL).write_bytes(b"")
    assert "it is a model of no kind" in refusal(copy)
    (copy / MODEL).unlink()
    assert "model.mlmodel' is missing" in refusal(copy)


def test_a_manifest_that_names_no_model_inside_is_refused(copy: Path) -> None:
    manifest = copy / "Manifest.json"
    content = json.loads(manifest.read_text())
    entry = content["itemInfoEntries"][content["rootModelIdentifier"]]
    shutil.copy(copy / MODEL, copy.parent / "outside.mlmodel")
    for outside in ("../../outside.mlmodel", str(copy.parent / "outside.mlmodel")):
        entry["path"] = outside
        manifest.write_text(json.dumps(content))
        assert f"names the file '{outside}' outside itself" in refusal(copy)
    for text in ("{", "[]", "{}", json.dumps(content | {"rootModelIdentifier": "none"}), '"text"'):
        manifest.write_text(text)
        assert "Manifest.json names no root model" in refusal(copy)
    manifest.write_bytes(b"\xff\xfe\xff")
    assert "Manifest.json names no root model" in refusal(copy)
    manifest.unlink()
    assert "holds no Manifest.json" in refusal(copy)


def test_a_link_to_the_outside_is_refused(copy: Path) -> None:
    outside = copy.parent / "outside.bin"
    (copy / WEIGHTS).rename(outside)
    (copy / WEIGHTS).symlink_to(outside)
    assert "names the file 'weights/weight.bin' outside itself" in refusal(copy)


def test_without_coremltools_it_says_how_to_get_it(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(ValueError, match=r"run `pip install 'snapgen-pl\[export\]'`"):
        read_package(package.path)
