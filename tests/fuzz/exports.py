"""What lies in an export's folder: its manifest, examples, ONNX files, and Core ML packages."""

import json
from pathlib import Path

import numpy as np
import onnx
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 (coremltools' own name for it)
from coremltools.converters.mil.mil import Var, types
from onnx import TensorProto, helper

from snapgen_pl.checkpoints import LAST
from snapgen_pl.export import folder as exported
from snapgen_pl.export.constant import ELEMENTS
from snapgen_pl.export.evaluate import evaluate
from snapgen_pl.export.example import Example, read_example
from snapgen_pl.export.package import read_package
from snapgen_pl.export.programs import OnnxProgram
from snapgen_pl.whole_files import write_json
from tests.export.saved_program import MODEL, WEIGHTS, model_of
from tests.fuzz.target import Target

EXPORT = {
    "kind": exported.KIND,
    "run": "tiny",
    "checkpoint": LAST,
    "step": 7,
    "weights": "EMA",
    "decoder": {},
    "classes": ["cat", "dog"],
    "num_classes": 2,
    "encoders": {"clip": {"tokenizer": "CLIPTokenizer", "tokens": 77, "truncate": True, "identity": "abc"}},
    "graphs": {"denoiser": {"files": {"onnx/denoiser.onnx": 3}, "parameters": 9}},
}
EXAMPLE, NET, PACKAGE = "denoiser.safetensors", "denoiser.onnx", "denoiser.mlpackage"
LARGEST = 1 << 16  # numbers that a damaged program may ask for


def write_export(folder: Path) -> None:
    (folder / "onnx").mkdir()
    for graph, content in {"denoiser": b"abc", "context": b"", "decoder": b"", "text_clip": b""}.items():
        (folder / "onnx" / f"{graph}.onnx").write_bytes(content)
    (folder / exported.CONFIG).write_text("model: {seed: 0}\n")
    write_json(EXPORT, folder / exported.MANIFEST)


def read_export(folder: Path) -> None:
    run = exported.open_exported(str(folder), "onnx")
    assert run.facts()["step"] == json.loads((folder / exported.MANIFEST).read_text())["step"]
    assert all(isinstance(name, str) for name in run.classes())
    assert "/../" not in json.dumps(run.config)


def write_example(folder: Path) -> None:
    Example({"x": torch.arange(4.0)}, {"velocity": torch.arange(3)}).write(folder / EXAMPLE)


def read_example_in(folder: Path) -> None:
    example = read_example(folder / EXAMPLE)
    assert all(isinstance(each, torch.Tensor) for each in (*example.inputs.values(), *example.expected.values()))


def write_onnx(folder: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in "xy")
    weight = helper.make_tensor("w", TensorProto.FLOAT, [3, 3], np.eye(3, dtype=np.float32).ravel())
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "tiny", [x], [y], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), folder / NET)


def read_onnx(folder: Path) -> None:
    program = OnnxProgram(str(folder / NET))
    for spec in (*program.inputs.values(), *program.outputs.values()):
        assert isinstance(spec.dtype, torch.dtype)
        assert min(spec.shape, default=1) > 0


def build(x: Var) -> list[Var]:
    weight = np.arange(32, dtype=np.float16).reshape(4, 2, 2, 2)  # in a file of its own, for its size
    y = mb.conv(x=x, weight=weight, bias=np.arange(4, dtype=np.float16), pad_type="same", name="conv")
    parts = mb.split(x=y, num_splits=2, axis=1, name="parts")
    y = mb.reshape(x=mb.concat(values=parts[::-1], axis=1), shape=(1, 4, 12))
    y = mb.softmax(x=mb.transpose(x=y, perm=(0, 2, 1)), axis=-1)
    return [mb.cast(x=mb.slice_by_index(x=y, begin=(0, 1, 0), end=(1, 9, 4), stride=(1, 2, 1)), dtype="fp32")]


def write_package(folder: Path) -> None:
    model_of({"sample": ((1, 2, 4, 3), types.fp16)}, lambda sample: build(sample)).save(str(folder / PACKAGE))


def read_and_evaluate(folder: Path) -> None:
    package = read_package(folder / PACKAGE)
    made = [declared for operation in package.operations for declared in operation.outputs.values()]
    if sum(declared.size for declared in (*package.inputs.values(), *made)) <= LARGEST:
        inputs = {
            name: torch.zeros(declared.shape, dtype=ELEMENTS[declared.dtype].held)
            for name, declared in package.inputs.items()
        }
        assert evaluate(package, inputs).outputs.keys() == package.outputs.keys()


TARGETS = {
    "export_manifest": Target(write_export, exported.MANIFEST, read_export),
    "export_example": Target(write_example, EXAMPLE, read_example_in),
    "onnx": Target(write_onnx, NET, read_onnx),
    "package_manifest": Target(write_package, f"{PACKAGE}/Manifest.json", read_and_evaluate),
    "package_program": Target(write_package, f"{PACKAGE}/{MODEL}", read_and_evaluate),
    "package_weights": Target(write_package, f"{PACKAGE}/{WEIGHTS}", read_and_evaluate),
}
