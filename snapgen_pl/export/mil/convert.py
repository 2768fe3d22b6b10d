"""ONNX files as Core ML packages. Importing it takes the ``export`` extra."""

from collections.abc import Mapping
from pathlib import Path

from coremltools import PassPipeline

from snapgen_pl.export.mil.graph import read_graph
from snapgen_pl.export.mil.lowering import Place, lower
from snapgen_pl.export.options import Options
from snapgen_pl.export.program import save_program

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


def convert(onnx: Path, path: Path, options: Options) -> Mapping[str, Place]:
    """Lowers an ONNX file to a package.

    Args:
        onnx: the file.
        path: of the package; an older one there is replaced.
        options: how.

    Returns:
        Where values of the ONNX graph lie in it, those that cleaning left.

    Raises:
        ValueError: where there is no lowering for an operator; names it and its node.
    """
    graph = read_graph(onnx)
    lowered = lower(graph, options)
    save_program(lowered.program, path, options.target, PassPipeline(pass_names=list(PASSES)), graph.metadata)
    return lowered.places
