"""A graph as an ONNX file that says what it is, checked against torch."""

import time
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from snapgen_pl.eval_mode import eval_mode
from snapgen_pl.export.example import Example, example_of
from snapgen_pl.export.extra import require
from snapgen_pl.export.graphs import Graph
from snapgen_pl.export.programs import OnnxProgram, Program
from snapgen_pl.terminal import errors_alone

OPSET = 23  # attention and the norms are one node each from here on
MAX_ERROR = 1e-4
CONVENTION = "t = 1 is noise; velocity = noise - data"
INLINE_BYTES = 2**16  # smaller tensors stay in the file: ONNX Runtime wants to see the sizes of splits and shapes there
_UNLIMITED = 2**40  # elements


class OnnxRecord(NamedTuple):
    """An ONNX file that was written.

    Attributes:
        graph: its name.
        path: of the file; weights lie beside it, in ``<path>.data``.
        parameters: of the network.
        bytes: of both files.
        opset: of the standard operators.
        ops: how many nodes of each type, the most frequent first.
        max_abs_error: of ONNX Runtime against torch, both in fp32, on the graph's examples.
        seconds: that export and checks took.
    """

    graph: str
    path: Path
    parameters: int
    bytes: int
    opset: int
    ops: dict[str, int]
    max_abs_error: float
    seconds: float


def export_onnx(graph: Graph, path: Path, metadata: Mapping[str, str], example: Example | None = None) -> OnnxRecord:
    """Writes a graph, and checks what was written.

    All but small weights lie in a file of their own beside it, for ONNX files of over 2 GB do not exist; the two belong
    together.

    Args:
        graph: in fp32, on the CPU.
        path: to write to, in a folder that exists; what lies there where a check fails is not to be kept.
        metadata: what the file says of itself, besides its graph and the convention of times.
        example: of the graph; made here where it is not at hand.

    Raises:
        ValueError: where the file would not compute what torch does, is of another opset, or a package is missing.
    """
    onnx = require("onnx")
    require("onnxscript")
    require("onnxruntime")
    start = time.perf_counter()
    with eval_mode(graph.module), torch.no_grad():
        _write(graph, path, metadata)
        if not _data(path).stat().st_size:  # all of them lie in the file itself
            _data(path).unlink()
        onnx.checker.check_model(str(path))
        head = onnx.load(path, load_external_data=False)
        opset = checked_opset(head, graph.name)
        error = checked_error(graph.name, example or example_of(graph), OnnxProgram(str(path)))
    size = sum(file.stat().st_size for file in files_of(path))
    ops = dict(Counter(node.op_type for node in head.graph.node).most_common())
    parameters = sum(parameter.numel() for parameter in graph.module.parameters())
    return OnnxRecord(graph.name, path, parameters, size, opset, ops, error, time.perf_counter() - start)


def files_of(path: Path) -> list[Path]:
    """The files of an ONNX file: itself, and its weights where they lie beside it."""
    data = _data(path)
    return [path, data] if data.exists() else [path]


def checked_opset(model: Any, name: str) -> int:
    """The opset of a model's standard operators.

    Raises:
        ValueError: where it is not the one asked for: exporters fall back in silence.
    """
    found = {opset.domain: int(opset.version) for opset in model.opset_import}
    if found != {"": OPSET}:
        raise ValueError(f"{name} came out as opset {found.get('')} with {len(found)} domains, not {OPSET}; use the "
                         "versions of torch and onnxscript in constraints.txt")  # fmt: skip
    return OPSET


def checked_error(name: str, example: Example, program: Program) -> float:
    """The largest difference of a program from torch, over all outputs of an example.

    Args:
        name: of the graph, for errors.
        example: of it.
        program: what is checked.

    Raises:
        ValueError: where it is not below MAX_ERROR, or that share of an output's largest value where that is above 1:
            text encoders say hundreds.
    """
    found = program(example.inputs)
    largest = 0.0
    for output, tensor in example.expected.items():
        error, scale = float((found[output] - tensor).abs().max()), max(1.0, float(tensor.abs().max()))
        if not error < MAX_ERROR * scale:  # nor where it is not a number
            raise ValueError(
                f"{name} differs from torch by {error:.1e} in ONNX Runtime, in {output} of up to {scale:.3g}; "
                f"{MAX_ERROR * scale:.0e} is allowed"
            )
        largest = max(largest, error)
    return largest


def _write(graph: Graph, file: Path, metadata: Mapping[str, str]) -> None:
    # The exporter tells what torchvision would add, and what it will do another way one day.
    with errors_alone("torch.onnx", "torch.__trace", "onnxscript"), warnings.catch_warnings(action="ignore"):
        program = torch.onnx.export(
            graph.module,
            tuple(graph.inputs.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            custom_translation_table={torch.ops.aten.hypot.default: _hypot},
            optimize=False,  # done below
            verbose=False,
        )
        assert program is not None
        _simplify(program.model)
        _widen_masks(program.model.graph)
        program.model.metadata_props.update(
            {**metadata, "snapgen_pl.graph": graph.name, "snapgen_pl.convention": CONVENTION}
        )
        require("onnx_ir").save(program.model, file, external_data=_data(file).name, size_threshold_bytes=INLINE_BYTES)


def _hypot(x: Any, y: Any) -> Any:
    """sqrt(x^2 + y^2), as which the exporter does not know it."""
    op = require("onnxscript").opset23
    return op.Sqrt(op.Add(op.Mul(x, x), op.Mul(y, y)))


def _simplify(model: Any) -> None:
    """Folds all that is known beforehand, whatever its size, and forgets where in the source each node came from.

    The exporter does it within limits that cannot be set: it would leave large tables of rotary positions to be
    computed, and large matrices to be transposed, every time.
    """
    require("onnxscript.optimizer").optimize_ir(
        model,
        input_size_limit=_UNLIMITED,
        output_size_limit=_UNLIMITED,
        should_fold=lambda node: True if node.op_type == "ConstantOfShape" else None,
    )
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None


def _widen_masks(graph: Any) -> None:
    """Repeats masks of attention that are one for all queries: ONNX lets them be, ONNX Runtime refuses them."""
    ir = require("onnx_ir")
    wide: dict[tuple[str, int], Any] = {}
    for node in [node for node in graph if node.op_type == "Attention" and len(node.inputs) > 3]:
        query, mask = node.inputs[0], node.inputs[3]
        if mask is None or mask.shape[-2] == (queries := query.shape[-2]):
            continue
        shape = [*mask.shape[:-2], queries, mask.shape[-1]]
        if (key := (mask.name, queries)) not in wide:
            name = f"{mask.name}_of_{queries}"
            target = ir.Value(
                name=f"{name}_shape", const_value=ir.tensor(shape, ir.DataType.INT64, name=f"{name}_shape")
            )
            graph.register_initializer(target)
            repeat = ir.node("Expand", [mask, target], name=name)
            wide[key] = repeat.outputs[0]
            wide[key].name, wide[key].shape, wide[key].dtype = name, ir.Shape(shape), mask.dtype
            graph.insert_before(node, repeat)
        node.replace_input_with(3, wide[key])


def _data(path: Path) -> Path:
    return path.with_name(path.name + ".data")
