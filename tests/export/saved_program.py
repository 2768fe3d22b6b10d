"""Small programs built with coremltools, saved, and read back: for tests of what reads packages."""

import gc
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import coremltools as ct
from coremltools.converters.mil import Builder as mb  # noqa: N813 (coremltools' own name for it)
from coremltools.converters.mil.mil import Function, Program, Var, types
from coremltools.models import MLModel
from coremltools.proto import Model_pb2

from snapgen_pl.export.package import Package, read_package

logging.getLogger("coremltools").setLevel(logging.ERROR)

Types = Mapping[str, tuple[tuple[int, ...], type]]
MODEL = Path("Data/com.apple.CoreML/model.mlmodel")
WEIGHTS = Path("Data/com.apple.CoreML/weights/weight.bin")


def model_of(inputs: Types, build: Callable[..., Sequence[Var]], target: ct.target = ct.target.iOS17) -> MLModel:
    """The program as built: no pass merges or casts anything. Outputs that are booleans become int32."""
    program = Program()
    placeholders = OrderedDict((name, mb.placeholder(shape, dtype)) for name, (shape, dtype) in inputs.items())
    with Function(placeholders, opset_version=target) as function:
        outputs = [
            mb.cast(x=value, dtype="int32") if value.dtype == types.bool else value
            for value in build(**function.inputs)
        ]
        function.set_outputs(outputs)
    program.add_function("main", function)
    gc.freeze()  # coremltools collects garbage at every conversion: longer than all else where torch is loaded
    return ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=target,
        pass_pipeline=ct.PassPipeline.EMPTY,
        skip_model_load=True,
    )


def saved(folder: Path, model: MLModel) -> Package:
    path = folder / "model.mlpackage"
    model.save(str(path))
    return read_package(path)


def edit(path: Path, change: Callable[[Model_pb2.Model], object]) -> None:
    """Changes the model inside a saved package."""
    model = Model_pb2.Model()
    model.ParseFromString((path / MODEL).read_bytes())
    change(model)
    (path / MODEL).write_bytes(model.SerializeToString())
