"""Who makes and who reads each value of a package, and what it is computed of."""

from collections import defaultdict
from collections.abc import Collection, Iterator
from functools import cached_property

from snapgen_pl.export.constant import Constant, TensorType
from snapgen_pl.export.options import ISLAND_INPUT
from snapgen_pl.export.package import Operation, Package

MOVES = ("reshape", "transpose", "cast", "identity")  # change how a value lies, or its type
LEAVES_ISLAND = ("cast", "conv", "linear", "matmul")
MAPPING = ("conv", "conv_transpose", "upsample_nearest_neighbor", "pixel_shuffle", "depth_to_space")


class Dataflow:
    """The values of a package, and the operations between them.

    Args:
        package: whose weights are not read.
    """

    def __init__(self, package: Package) -> None:
        self.package = package
        # Inputs, outputs and the package as a whole have operations of their own here, which do nothing.
        inputs = [Operation("input", name, {}, {}, {name: declared}) for name, declared in package.inputs.items()]
        outputs = [Operation("output", name, {"x": (name,)}, {}, {}) for name in package.outputs]
        whole = Operation("package", package.path.name, {}, {}, {})
        self.operations = (whole, *inputs, *package.operations, *outputs)
        self.makers = {name: each for each in self.operations for name in each.outputs}
        self.readers: dict[str, list[Operation]] = defaultdict(list)
        for operation in self.operations:
            for name in operation.reads:
                self.readers[name].append(operation)

    def type_of(self, operation: Operation, argument: str = "x") -> TensorType:
        """The type of what an argument is bound to, or of the first of several."""
        bound = operation.inputs[argument][0]
        return bound.type if isinstance(bound, Constant) else self.makers[bound].outputs[bound]

    def constant(self, operation: Operation, argument: str) -> Constant | None:
        """The constant that an argument is bound to; None where it is not given, or no constant."""
        bound = operation.inputs.get(argument, (None,))[0]
        if isinstance(bound, str) and self.makers[bound].type == "const":
            return self.makers[bound].attributes["val"]
        return bound if isinstance(bound, Constant) else None

    def origin(self, operation: Operation) -> Operation:
        """What made the input of an operation, before it was only moved."""
        bound = operation.inputs["x"][0]
        if isinstance(bound, Constant):
            return operation
        maker = self.makers[bound]
        return self.origin(maker) if maker.type in MOVES else maker

    def uses(self, operation: Operation, through: Collection[str] = MOVES) -> Iterator[tuple[str, Operation]]:
        """The operations that read what one makes, and the names they read, after it is moved, or some such."""
        for name in operation.outputs:
            for reader in self.readers[name]:
                if reader.type in through:
                    yield from self.uses(reader, through)
                else:
                    yield name, reader

    @cached_property
    def island(self) -> set[str]:
        """What is computed of the timestep alone, before its first product with weights."""
        return self._computed_of({ISLAND_INPUT}, LEAVES_ISLAND)

    @cached_property
    def indices(self) -> set[str]:
        """What is computed of integer inputs alone, but for what is looked up by them."""
        given = {name for name, declared in self.package.inputs.items() if declared.dtype.startswith("INT")}
        return self._computed_of(given, ("gather", "gather_nd"))

    @cached_property
    def grids(self) -> set[tuple[int, int]]:
        """Heights and widths of maps, which convolutions and upsampling have."""
        mapping = [each for each in self.package.operations if each.type in MAPPING and not self._pointwise(each)]
        shapes = [self.type_of(each).shape for each in mapping]
        shapes += [made.shape for each in mapping for made in each.outputs.values()]
        return {(shape[-2], shape[-1]) for shape in shapes}

    def _pointwise(self, operation: Operation) -> bool:
        return operation.type == "conv" and self.type_of(operation, "weight").shape[2:] == (1, 1)

    def _computed_of(self, given: Collection[str], until: Collection[str]) -> set[str]:
        found = set(given)
        constants = {name for each in self.package.operations if is_constant(each) for name in each.outputs}
        for operation in self.package.operations:
            read = operation.reads - constants
            if read and read <= found and operation.type not in until:
                found |= set(operation.outputs)
        return found


def is_constant(operation: Operation) -> bool:
    """Whether it holds numbers, or unpacks compressed ones."""
    return operation.type == "const" or operation.type.startswith("constexpr_")
