"""A Core ML package as a program that draws, evaluated where no Core ML is."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from torch import Tensor

from snapgen_pl.export.constant import ELEMENTS, TensorType
from snapgen_pl.export.evaluate import evaluate
from snapgen_pl.export.package import Package, read_package
from snapgen_pl.export.programs import Program, TensorSpec


class PackageProgram(Program):
    """A package, run operation by operation in its declared types: slow, and what a phone computes but for its own
    order of sums.

    Args:
        path: the ``.mlpackage``, read when it is first asked.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    @cached_property
    def package(self) -> Package:
        """The package.

        Raises:
            ValueError: where it is damaged.
        """
        return read_package(self.path)

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """See Program."""
        return {name: _spec(declared) for name, declared in self.package.inputs.items()}

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """See Program."""
        return {name: _spec(declared) for name, declared in self.package.outputs.items()}

    def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """See Program."""
        return evaluate(self.package, inputs).outputs


def _spec(declared: TensorType) -> TensorSpec:
    return TensorSpec(declared.shape, ELEMENTS[declared.dtype].held)
