"""The program of a saved Core ML package, to be changed and saved again with nothing else changed."""

import io
import shutil
from collections.abc import Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

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


def save_program(
    program: Any,
    package: Package,
    path: Path,
    passes: Mapping[str, Mapping[str, Any]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a program as a package.

    coremltools' own functions from package to package end in all of its passes, which put norms and affines together
    under epsilons of their own, and fail where types are mixed.

    Args:
        program: of :func:`load_program`.
        package: what it was loaded from.
        path: to write to.
        passes: the only ones that it goes through, and their settings.
        metadata: what it says of itself, besides what the package says.
    """
    ct = require("coremltools")
    pipeline = ct.PassPipeline(pass_names=list(passes))
    for name, settings in passes.items():
        pipeline.set_options(name, dict(settings))
    with redirect_stderr(io.StringIO()):  # its bars, one a stage
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=getattr(ct.target, f"iOS{IOS_OF[package.spec_version]}"),
            compute_precision=ct.precision.FLOAT32,  # as it is
            pass_pipeline=pipeline,
            skip_model_load=True,
        )
    model.user_defined_metadata.update({**package.metadata, **(metadata or {})})
    model.save(str(path))
    shutil.rmtree(model.package_path)
