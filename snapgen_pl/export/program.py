"""coremltools' programs: saved as packages, and read back to be changed and saved again with nothing else changed."""

import io
import shutil
from collections.abc import Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import snapgen_pl
from snapgen_pl.export.descriptions import HANDED_OVER, describe_graph, describe_value
from snapgen_pl.export.extra import require
from snapgen_pl.export.package import Package

IOS_OF = {7: 16, 8: 17, 9: 18}  # the oldest that runs a specification version


def load_program(package: Package) -> Any:
    """coremltools' program of a package: anew at each call, for whoever changes it.

    Raises:
        ValueError: where coremltools is not installed.
    """
    utils = require("coremltools.models.utils")
    milproto = require("coremltools.converters.mil.frontend.milproto.load")
    weights = utils._try_get_weights_dir_path(str(package.path))
    return milproto.load(utils.load_spec(str(package.path)), package.spec_version, weights)


def save_changed(
    program: Any,
    package: Package,
    path: Path,
    passes: Mapping[str, Mapping[str, Any]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes what became of a package's program as a package.

    coremltools' own functions from package to package end in all of its passes, which put norms and affines together
    under epsilons of their own, and fail where types are mixed.

    Args:
        program: of :func:`load_program`.
        package: what it was loaded from.
        path: to write to.
        passes: the only ones that it goes through, and their settings.
        metadata: what it says of itself, besides what the package says.
    """
    pipeline = require("coremltools").PassPipeline(pass_names=list(passes))
    for name, settings in passes.items():
        pipeline.set_options(name, dict(settings))
    save_program(program, path, IOS_OF[package.spec_version], pipeline, {**package.metadata, **(metadata or {})})


def save_program(program: Any, path: Path, ios: int, pipeline: Any, metadata: Mapping[str, str]) -> None:
    """Writes a program as a package, in the types that it has.

    Args:
        program: coremltools'.
        path: to write to; an older package there is replaced.
        ios: the oldest that shall run it.
        pipeline: of the only passes that it goes through.
        metadata: what the package says of itself.
    """
    ct = require("coremltools")
    with redirect_stderr(io.StringIO()):  # its bars, one a stage
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=getattr(ct.target, f"iOS{ios}"),
            compute_precision=ct.precision.FLOAT32,  # as it is
            pass_pipeline=pipeline,
            skip_model_load=True,
        )
    model.user_defined_metadata.update(metadata)
    _describe(model, metadata)
    model.save(str(path))
    shutil.rmtree(model.package_path)  # coremltools would hold it elsewhere on the disk until the process ends


def _describe(model: Any, metadata: Mapping[str, str]) -> None:
    """Says what apps and Xcode show, of a graph that says which it is."""
    model.version = snapgen_pl.__version__
    model.license = metadata.get("snapgen_pl.licence", "")
    if (graph := metadata.get("snapgen_pl.graph")) is None:
        return
    halved = False
    for described in (model.input_description, model.output_description):
        for name in described:
            if (told := describe_value(graph, name)) is None:
                halved, told = True, HANDED_OVER
            described[name] = told
    model.short_description = describe_graph(graph) + (" One of two halves." if halved else "")
