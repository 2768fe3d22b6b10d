"""ONNX graphs of a few nodes, run by ONNX Runtime and, lowered and saved, by the evaluator."""

import gc
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from snapgen_pl.export.evaluate import Evaluation, evaluate
from snapgen_pl.export.mil import convert
from snapgen_pl.export.options import Options
from snapgen_pl.export.package import Package, read_package

Array = NDArray[Any]
FLOAT32 = Options(half=False)
OPSET = 23


def graph_file(
    folder: Path,
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Array],
    constants: Mapping[str, Array],
    outputs: Sequence[str] = ("y",),
) -> Path:
    """Writes a graph; shapes and types of outputs are those that ONNX's reference gives."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, _type(array), array.shape) for name, array in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    made = ReferenceEvaluator(model).run(None, dict(inputs))
    for output, array in zip(model.graph.output, made, strict=True):
        output.CopyFrom(helper.make_tensor_value_info(output.name, _type(np.asarray(array)), np.shape(array)))
    path = folder / "graph.onnx"
    onnx.save(model, path)
    return path


def package(onnx_file: Path, options: Options = FLOAT32) -> Package:
    """Lowers, saves beside the file, and reads."""
    # coremltools collects garbage at every conversion, which takes longer than all else where torch is loaded.
    gc.freeze()
    path = onnx_file.with_suffix(".mlpackage")
    convert(onnx_file, path, options)
    return read_package(path)


def evaluation(onnx_file: Path, inputs: Mapping[str, Array], options: Options = FLOAT32) -> Evaluation:
    """What the lowered graph gives."""
    return evaluate(package(onnx_file, options), {name: torch.from_numpy(array) for name, array in inputs.items()})


def runtime_outputs(onnx_file: Path, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """What ONNX Runtime gives."""
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def check(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Array],
    constants: Mapping[str, Array] | None = None,
    options: Options = FLOAT32,
    outputs: Sequence[str] = ("y",),
    tolerance: float = 1e-5,
) -> Evaluation:
    """Compares the two; ``tolerance`` is of the largest value."""
    with tempfile.TemporaryDirectory() as folder:
        file = graph_file(Path(folder), nodes, inputs, constants or {}, outputs)
        expected = runtime_outputs(file, inputs)
        found = evaluation(file, inputs, options)
    for name in outputs:
        array = found.outputs[name].numpy()
        assert array.shape == expected[name].shape, name
        scale = max(1.0, float(np.abs(expected[name]).max()))
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=tolerance * scale, err_msg=name)
    return found


def _type(array: Array) -> int:
    return int(helper.np_dtype_to_tensor_dtype(array.dtype))
