"""Runs a saved Core ML package with torch, where nothing else does: on Linux, and apart from the code that made it."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from snapgen_pl.export.constant import ELEMENTS, TensorType, Value
from snapgen_pl.export.evaluate_ops import OPERATIONS
from snapgen_pl.export.evaluate_ops.arguments import Arguments
from snapgen_pl.export.package import Operation, Package

Precision = Literal["declared", "float32"]


class Extreme(NamedTuple):
    """How far an operation's floating results go, as rounded.

    Attributes:
        operation: its name.
        type: its type, such as ``conv``.
        largest: the largest finite absolute value; 0 where there is none.
        nonfinite: how many values are NaN or infinite.
    """

    operation: str
    type: str
    largest: float
    nonfinite: int

    @property
    def share(self) -> float:
        """Of float16's largest number, 65,504; above 1 where float16 would overflow."""
        return self.largest / torch.finfo(torch.float16).max


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What an evaluation gave.

    Attributes:
        outputs: by name, in the declared type, or in fp32 where that is asked for.
        extremes: one for each operation that makes floating results, constants excepted, in order.
    """

    outputs: Mapping[str, Tensor]
    extremes: tuple[Extreme, ...]


@torch.no_grad()
def evaluate(
    package: Package,
    inputs: Mapping[str, Tensor],
    precision: Precision = "declared",
    progress: Callable[[Sequence[Operation]], Iterable[Operation]] = iter,
    watch: Callable[[str, Tensor], None] | None = None,
) -> Evaluation:
    """Evaluates every operation in fp32, and rounds its result.

    Values are dropped after their last use, and weights are read from their file when they are used.

    Args:
        package: what :func:`snapgen_pl.export.package.read_package` gave.
        inputs: by name, of the declared shapes; they are rounded as results are.
        precision: ``declared`` rounds each result to its declared type, where fp16 overflows to infinity; ``float32``
            takes fp16 for fp32, with the weights as stored, so that only the program is judged.
        progress: wraps the operations, such as ``rich.progress.track``.
        watch: is shown each value that is made, by name.

    Raises:
        ValueError: where inputs are not those of the package, an operation is not known or fails, or a result is not of
            the declared shape or type.
    """
    _check_known(package)
    values: dict[str, Value] = _inputs(package, inputs, precision)
    last_uses = _last_uses(package)
    extremes = []
    for position, operation in enumerate(progress(package.operations)):
        try:
            results = _results(operation, values, package.spec_version, precision)
        except (ValueError, RuntimeError, IndexError, TypeError) as error:
            raise ValueError(f"{package.path}: the operation {operation} failed: {error}") from error
        values.update(results)
        for name, value in results.items():
            if watch is not None and isinstance(value, Tensor):
                watch(name, value)
        if operation.type != "const":
            extremes += _extremes(operation, results.values())
        for name in last_uses.get(position, ()):
            del values[name]
    outputs = {name: _rounded(_tensor(values[name]), declared, precision) for name, declared in package.outputs.items()}
    return Evaluation(outputs, tuple(extremes))


def _check_known(package: Package) -> None:
    for operation in package.operations:
        if operation.type != "const" and operation.type not in OPERATIONS:
            raise ValueError(
                f"{package.path}: the operation {operation} is of a type that is not evaluated; export without it, or "
                "add it to snapgen_pl.export.evaluate_ops"
            )


def _inputs(package: Package, inputs: Mapping[str, Tensor], precision: Precision) -> dict[str, Value]:
    if set(inputs) != set(package.inputs):
        raise ValueError(f"{package.path} takes the inputs {sorted(package.inputs)}, given are {sorted(inputs)}")
    values: dict[str, Value] = {}
    for name, declared in package.inputs.items():
        if tuple(inputs[name].shape) != declared.shape:
            raise ValueError(
                f"{package.path} takes '{name}' of shape {declared.shape}, given is {tuple(inputs[name].shape)}"
            )
        try:
            values[name] = _rounded(inputs[name], declared, precision)
        except ValueError as error:
            raise ValueError(f"{package.path}: the input '{name}' does not fit: {error}") from error
    return values


def _last_uses(package: Package) -> dict[int, list[str]]:
    """By position, the values that no later operation reads and that are no outputs."""
    last = {}
    for position, operation in enumerate(package.operations):
        last.update(dict.fromkeys([*operation.outputs, *operation.reads], position))
    uses: dict[int, list[str]] = {}
    for name, position in last.items():
        if name not in package.outputs:
            uses.setdefault(position, []).append(name)
    return uses


def _results(
    operation: Operation, values: Mapping[str, Value], spec_version: int, precision: Precision
) -> dict[str, Value]:
    if operation.type == "const":
        return _constant(operation)
    bound: dict[str, list[Value]] = {
        key: [values[binding] if isinstance(binding, str) else binding.value() for binding in bindings]
        for key, bindings in operation.inputs.items()
    }
    bound |= {key: [constant.value()] for key, constant in operation.attributes.items() if key != "name"}
    arguments = Arguments(bound, spec_version)
    made = OPERATIONS[operation.type](arguments)
    if arguments.unread:
        raise ValueError(f"its arguments {sorted(arguments.unread)} are not evaluated; export without them")
    tensors = [made] if isinstance(made, Tensor) else list(made)
    if len(tensors) != len(operation.outputs):
        raise ValueError(f"it makes {len(tensors)} results, declared are {len(operation.outputs)}")
    return {
        name: _rounded(_checked(tensor, declared), declared, precision)
        for tensor, (name, declared) in zip(tensors, operation.outputs.items(), strict=True)
    }


def _constant(operation: Operation) -> dict[str, Value]:
    """As stored: a weight of fp16 becomes fp32 only where it is used."""
    (name, declared), constant = next(iter(operation.outputs.items())), operation.attributes["val"]
    if constant.type != declared:
        raise ValueError(f"it holds {constant.type}, declared is {declared}; export the package again")
    return {name: constant.value()}


def _checked(result: Tensor, declared: TensorType) -> Tensor:
    if tuple(result.shape) != declared.shape:
        raise ValueError(f"its result is {tuple(result.shape)}, declared is {declared.shape}; export the package again")
    return result


def _rounded(value: Tensor, declared: TensorType, precision: Precision) -> Tensor:
    """The value in its declared type; what is declared an integer or boolean must be one."""
    element = ELEMENTS[declared.dtype]
    if element.held.is_floating_point:
        return value.to(torch.float32 if precision == "float32" else element.held)
    result = value.to(element.held)
    outside = (value < element.lowest) | (value > element.highest) | (result.double() != value.double())
    if outside.any():
        raise ValueError(f"{value[outside][0].item():g} does not fit {declared.dtype}; cast it, or export again")
    return result


def _tensor(value: Value) -> Tensor:
    if isinstance(value, str):
        raise ValueError(f"an output is the string '{value}'; export the package again")
    return value


def _extremes(operation: Operation, results: Iterable[Value]) -> list[Extreme]:
    floating = [value for value in results if isinstance(value, Tensor) and value.is_floating_point()]
    if not floating:
        return []
    largest = [_largest(value) for value in floating]
    return [Extreme(operation.name, operation.type, max(one for one, _ in largest), sum(n for _, n in largest))]


def _largest(value: Tensor) -> tuple[float, int]:
    """The largest finite absolute value, and how many values are not finite."""
    if value.numel() == 0:
        return 0.0, 0
    low, high = value.aminmax()  # both NaN where any value is
    largest = max(abs(float(low)), abs(float(high)))
    if math.isfinite(largest):
        return largest, 0
    finite = value.isfinite()
    return float(value.abs().where(finite, 0).max()), int((~finite).sum())
