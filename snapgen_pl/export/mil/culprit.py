"""Which operator a wrong package is wrong in: values on the way, compared with ONNX Runtime's one by one."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import onnx
import onnxruntime
import torch
from torch import Tensor

from snapgen_pl.export.difference import difference
from snapgen_pl.export.evaluate import evaluate
from snapgen_pl.export.mil.graph import Array, read_graph
from snapgen_pl.export.mil.lowering import Place
from snapgen_pl.export.package import Package

AT_ONCE = 64  # values of ONNX Runtime's that are held at a time
# Relative errors below are the precision's own.
FLOORS = {"float32": 1e-7, "float16": 1e-3}


class Culprit(NamedTuple):
    """Where a package leaves the path.

    Attributes:
        node: of ONNX, its type and name.
        error: relative L2 of what it gives.
        inherited: the largest of what it was given.
    """

    node: str
    error: float
    inherited: float

    def __str__(self) -> str:
        return f"the error grows most in {self.node}: from {self.inherited:.1e} to {self.error:.1e}"


def find_culprit(
    onnx_file: Path,
    package: Package,
    places: Mapping[str, Place],
    inputs: Mapping[str, Tensor],
    precision: Literal["float32", "float16"],
) -> Culprit | None:
    """The operator in which the relative error grows most.

    Args:
        onnx_file: what the package was made of.
        package: wrong, or coarse.
        places: of ONNX's values in it.
        inputs: an example.
        precision: of the package.

    Returns:
        None where no value on the way can be compared.
    """
    kept = {place.var: name for name, place in places.items()}
    made: dict[str, Tensor] = {}

    def watch(var: str, value: Tensor) -> None:
        if var in kept:
            made[kept[var]] = value

    evaluate(package, inputs, watch=watch)
    errors = {
        name: difference(_as_onnx(made[name], places[name]), expected).relative_l2
        for name, expected in _runtime_values(onnx_file, list(made), inputs)
    }
    steps = list(_steps(onnx_file, errors))
    return max(steps, key=lambda step: step.error / max(step.inherited, FLOORS[precision]), default=None)


def _steps(onnx_file: Path, errors: Mapping[str, float]) -> Iterator[Culprit]:
    """Per operator, the errors before and after; a value that is not known inherits those it is made of."""
    graph = read_graph(onnx_file)
    reached: dict[str, float] = {}
    for node in graph.nodes:
        inherited = max((reached.get(name, 0.0) for name in node.inputs), default=0.0)
        for name in node.outputs:
            reached[name] = errors.get(name, inherited)
            if name in errors:
                yield Culprit(str(node), errors[name], inherited)


def _as_onnx(value: Tensor, place: Place) -> Tensor:
    """A value that lies with its axes in any order -> as ONNX has it."""
    lying = value.reshape([place.shape[axis] for axis in place.order])
    back = [place.order.index(axis) for axis in sorted(place.order)]
    return lying.permute(back).reshape(place.shape).float()


def _runtime_values(
    onnx_file: Path, names: Sequence[str], inputs: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Values on the way in ONNX Runtime, a few at a time, those that are floating."""
    arrays = {name: tensor.numpy(force=True) for name, tensor in inputs.items()}
    model = onnx.load(onnx_file, load_external_data=False)
    own = len(model.graph.output)
    probe = onnx_file.with_name(onnx_file.name + ".probe")  # beside it, where its weights are found
    try:
        for start in range(0, len(names), AT_ONCE):
            wanted = names[start : start + AT_ONCE]
            del model.graph.output[own:]
            present = {output.name for output in model.graph.output}
            model.graph.output.extend(
                onnx.helper.make_empty_tensor_value_info(name) for name in wanted if name not in present
            )
            onnx.save(model, probe)
            for name, array in zip(wanted, _run(probe, wanted, arrays), strict=True):
                if (value := torch.from_numpy(array)).is_floating_point():
                    yield name, value
    finally:
        probe.unlink(missing_ok=True)


def _run(file: Path, wanted: Sequence[str], arrays: Mapping[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])
    values: list[Array] = session.run(list(wanted), dict(arrays))
    return values
