"""A package cut in two, for compilers that do not take it whole.

A package of 667 MB is reported to be too large for the Neural Engine's compiler.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snapgen_pl.export.evaluate import evaluate
from snapgen_pl.export.extra import require
from snapgen_pl.export.package import Package, read_package
from snapgen_pl.export.program import load_program, save_changed

# What is handed over is called like what it was made of, which a package may not do.
_UNIQUE: Mapping[str, Mapping[str, Any]] = {"common::dedup_op_and_var_names": {}}


class Chunks(NamedTuple):
    """Two packages that do together what one did.

    Attributes:
        first: makes what the second reads, in float32: float16 numbers pass unchanged.
        second: takes that, and what it needs of the inputs.
    """

    first: Package
    second: Package

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Evaluates one after the other; all outputs of both."""
        known = dict(inputs)
        for package in self:
            known |= evaluate(package, {name: known[name] for name in package.inputs}).outputs
        return {name: tensor for name, tensor in known.items() if name not in inputs}


def chunk_paths(path: Path) -> tuple[Path, Path]:
    """Where the halves of a package lie, beside it."""
    first, second = (path.with_name(f"{path.stem}_chunk{number}{path.suffix}") for number in (1, 2))
    return first, second


def cut(package: Package, path: Path, inputs: Mapping[str, Tensor]) -> Chunks:
    """Writes a package as two of about as many weights.

    The cut is that of coremltools' ``bisect_model``, made of its parts: that function itself sends both halves through
    passes that change them.

    Args:
        package: to cut.
        path: of the whole, beside which they are written, see :func:`chunk_paths`.
        inputs: on which both together must give, bit for bit, what the whole gives.

    Raises:
        ValueError: where they do not, or there is no place to cut.
    """
    utils = require("coremltools.models.utils")
    first, second = chunk_paths(path)
    place, _, _ = utils._get_op_idx_split_location(_listed(package))
    save_changed(utils._make_first_chunk_prog(_listed(package), place), package, first, _UNIQUE)
    save_changed(utils._make_second_chunk_prog(_listed(package), place), package, second, _UNIQUE)
    chunks = Chunks(read_package(first), read_package(second))
    found, expected = chunks(inputs), evaluate(package, inputs).outputs
    for name, tensor in expected.items():
        if name not in found or not torch.equal(found[name], tensor):
            raise ValueError(
                f"{package.path} cut in two does not give the same {name}; raise chunk_above to keep it whole"
            )
    return chunks


def _listed(package: Package) -> Any:
    program = load_program(package)
    function = program.functions["main"]
    function.operations = list(function.operations)
    return program
