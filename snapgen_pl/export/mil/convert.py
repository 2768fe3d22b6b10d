"""ONNX files as Core ML models. Importing it takes the ``export`` extra."""

import io
import shutil
from collections.abc import Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple

import coremltools as ct

from snapgen_pl.export.mil.graph import read_graph
from snapgen_pl.export.mil.lowering import Place, lower
from snapgen_pl.export.options import Options

# What a program is cleaned by. It is lowered to what shall run, in the types that it shall run in: coremltools' own
# pipeline would put norms and affines together under epsilons of its own, and choose types anew.
PASSES = (
    "common::const_elimination",
    "common::dead_code_elimination",
    "common::sanitize_input_output_names",
    "common::noop_elimination",
    "common::fuse_conv_bias",
    "common::cast_optimization",
    "common::const_deduplication",
    "common::dead_code_elimination",
    "common::dedup_op_and_var_names",
    "common::topological_reorder",
)


class Converted(NamedTuple):
    """A Core ML model in memory.

    Attributes:
        model: coremltools'.
        places: where values of the ONNX graph lie in it, those that cleaning left.
    """

    model: Any
    places: Mapping[str, Place]

    def save(self, path: Path) -> None:
        """Writes the package, once: what coremltools holds of it elsewhere on the disk until the process ends goes."""
        self.model.save(str(path))
        shutil.rmtree(self.model.package_path)


def convert(onnx: Path, options: Options) -> Converted:
    """Lowers an ONNX file.

    Raises:
        ValueError: where there is no lowering for an operator; names it and its node.
    """
    graph = read_graph(onnx)
    lowered = lower(graph, options)
    with redirect_stderr(io.StringIO()):  # its bars, one a stage
        model = ct.convert(
            lowered.program,
            convert_to="mlprogram",
            minimum_deployment_target=getattr(ct.target, f"iOS{options.target}"),
            compute_precision=ct.precision.FLOAT32,  # as lowered
            pass_pipeline=ct.PassPipeline(pass_names=list(PASSES)),
            skip_model_load=True,
        )
    model.user_defined_metadata.update(graph.metadata)
    return Converted(model, lowered.places)
