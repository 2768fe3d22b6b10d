"""What runs an exported network: a program from named tensors to named tensors, at fixed shapes and batch 1."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snapgen_pl.export.extra import require


class TensorSpec(NamedTuple):
    """What a program takes or gives under a name.

    Attributes:
        shape: all of it, batch 1 included.
        dtype: of its values.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype


class Program(ABC):
    """Something that runs an exported network."""

    @property
    @abstractmethod
    def inputs(self) -> Mapping[str, TensorSpec]:
        """What it takes, by name."""

    @property
    @abstractmethod
    def outputs(self) -> Mapping[str, TensorSpec]:
        """What it gives, by name."""

    @abstractmethod
    def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """All outputs for all inputs, each of just the shape and type that is declared."""


class OnnxProgram(Program):
    """An ONNX file in ONNX Runtime, on as many threads of the CPU as torch uses.

    The file's head is read at once, its weights when it first runs.

    Args:
        path: the file; weights that are not in it lie beside it.

    Raises:
        ValueError: where it is no ONNX file, or its shapes are not fixed.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        onnx = require("onnx")
        try:
            model = onnx.load(self.path, load_external_data=False)
        except Exception as error:  # protobuf has its own errors for damaged files
            raise ValueError(
                f"{self.path} is no ONNX file, or a damaged one ({error}); export the run again"
            ) from error
        self._inputs = {value.name: self._spec(value, onnx) for value in model.graph.input}
        self._outputs = {value.name: self._spec(value, onnx) for value in model.graph.output}

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """See Program."""
        return self._inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """See Program."""
        return self._outputs

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See Program."""
        arrays = {name: tensor.numpy(force=True) for name, tensor in inputs.items()}
        outputs = self._session.run(list(self._outputs), arrays)
        return {name: torch.from_numpy(array) for name, array in zip(self._outputs, outputs, strict=True)}

    @cached_property
    def _session(self) -> Any:  # onnxruntime has no types
        runtime = require("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            return runtime.InferenceSession(str(self.path), options, ["CPUExecutionProvider"])
        except Exception as error:  # a class of its own for each way of failing
            raise ValueError(f"ONNX Runtime cannot read {self.path} ({error}); export the run again") from error

    def _spec(self, value: Any, onnx: Any) -> TensorSpec:
        shape = tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)
        if min(shape, default=1) < 1:
            raise ValueError(f"{self.path}: the shape of {value.name} is not fixed; export the run again")
        element = value.type.tensor_type.elem_type
        try:
            dtype = getattr(torch, onnx.helper.tensor_dtype_to_np_dtype(element).name)
        except (KeyError, AttributeError) as error:
            raise ValueError(
                f"{self.path}: {value.name} is no tensor of numbers (type {element}); export the run again"
            ) from error
        return TensorSpec(shape, dtype)


def run_rows(program: Program, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Runs a program of batch 1 for each row of a batch.

    Args:
        program: of batch 1.
        inputs: (B, ...) each, on any device and of any type; they become what the program takes.

    Returns:
        (B, ...) each, on the CPU.

    Raises:
        ValueError: where names or shapes are not the program's.
    """
    if inputs.keys() != program.inputs.keys():
        raise ValueError(f"the program takes {', '.join(program.inputs)}; given were {', '.join(inputs)}")
    for name, spec in program.inputs.items():
        if inputs[name].shape[1:] != spec.shape[1:]:
            given, wanted = tuple(inputs[name].shape[1:]), spec.shape[1:]
            raise ValueError(f"{name} is {given} a sample; the program was exported for {wanted}")
    taken = {name: inputs[name].to("cpu", spec.dtype) for name, spec in program.inputs.items()}
    count = len(next(iter(taken.values())))
    rows = [program({name: tensor[i : i + 1] for name, tensor in taken.items()}) for i in range(count)]
    return {name: torch.cat([row[name] for row in rows]) for name in program.outputs}
