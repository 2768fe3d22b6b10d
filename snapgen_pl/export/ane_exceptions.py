"""What may break a rule of the Neural Engine, and why: all that is excused is excused here, counted and told apart."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from snapgen_pl.export.ane_rules import LOOKUPS, RuleName
from snapgen_pl.export.constant import TensorType
from snapgen_pl.export.dataflow import MOVES, Dataflow
from snapgen_pl.export.limits import MAX_WEIGHTS, MIN_LAST_AXIS
from snapgen_pl.export.package import Operation


class ExceptionFrom(NamedTuple):
    """Something that may break some rules.

    Attributes:
        rules: that it may break.
        covers: whether an operation is such a thing.
        reason: why it may.
    """

    rules: tuple[RuleName, ...]
    covers: Callable[[Operation, Dataflow], bool]
    reason: str


def in_island(operation: Operation, flow: Dataflow) -> bool:
    """Whether all that it makes is computed of the timestep alone."""
    return operation.outputs.keys() <= flow.island


def of_a_vector(operation: Operation, flow: Dataflow) -> bool:
    """Whether it works on a single position: all axes but one are of size 1."""
    reads = [flow.type_of(operation)] if "x" in operation.inputs else []
    return all(_is_vector(each) for each in (*reads, *operation.outputs.values()))


def on_a_narrow_grid(operation: Operation, flow: Dataflow) -> bool:
    """Whether it makes maps whose rows are those of a convolution, and short."""
    return all(
        made.shape[-2:] in flow.grids and 1 < made.shape[-1] < MIN_LAST_AXIS for made in operation.outputs.values()
    )


def joins_positions(operation: Operation, flow: Dataflow) -> bool:
    """Whether it puts the rows of a map behind each other, or apart again."""
    joined = {(width, height * width) for height, width in flow.grids}
    (made,) = operation.outputs.values()
    widths = (*flow.type_of(operation).shape[-1:], *made.shape[-1:])
    return widths in joined or widths[::-1] in joined


def makes_keys(operation: Operation, flow: Dataflow) -> bool:
    """Whether all that it makes is read by einsum on the left, scaled, split and moved before."""
    uses = list(flow.uses(operation, (*MOVES, "split", "mul")))
    return bool(uses) and all(each.type == "einsum" and each.inputs["values"][0] == name for name, each in uses)


def at_the_interface(operation: Operation, flow: Dataflow) -> bool:
    """Whether an input of the package comes to it as it is given, or an output leaves it as it is made."""
    return flow.origin(operation).type == "input" or any(each.type == "output" for _, each in flow.uses(operation))


def by_tokens(operation: Operation, flow: Dataflow) -> bool:
    """Whether it looks up by what the package is given, or moves what was looked up, or is about to be."""
    if operation.type in LOOKUPS:
        return all(isinstance(name, str) and name in flow.indices for name in operation.inputs["indices"])
    uses = {each.type for _, each in flow.uses(operation)}
    return flow.origin(operation).type in LOOKUPS or (bool(uses) and uses <= set(LOOKUPS))


def is_exact(operation: Operation, flow: Dataflow) -> bool:
    """Whether its epsilon is of a type that keeps it."""
    held = flow.constant(operation, "epsilon")
    return held is not None and held.type.dtype == "FLOAT32"


def is_under_the_limit(operation: Operation, flow: Dataflow) -> bool:
    """Whether the package keeps to Apple's own limit."""
    return flow.package.stored_bytes < MAX_WEIGHTS


EXCEPTIONS: Mapping[str, ExceptionFrom] = {
    "island": ExceptionFrom(
        ("dtype",),
        in_island,
        "the timestep's sinusoid would be off by 0.3 in float16; it is one vector a step",
    ),
    "vector": ExceptionFrom(
        ("axis", "product", "reshape"),
        of_a_vector,
        "what is one vector a step is a product of one row, and must lie along channels to be added to a map or to "
        "scores: 64 bytes a number, of few",
    ),
    "grid": ExceptionFrom(
        ("axis",),
        on_a_narrow_grid,
        "a convolution's map has the network's own rows, here under 64 bytes; nothing at 1024 px has",
    ),
    "positions": ExceptionFrom(
        ("reshape",),
        joins_positions,
        "attention wants positions in a row: once into each transformer and once out; and so does the norm of a map "
        "with short rows",
    ),
    "keys": ExceptionFrom(
        ("transpose",), makes_keys, "einsum takes keys by rows: the one transpose that Apple's own attention has too"
    ),
    "interface": ExceptionFrom(
        ("reshape", "transpose"),
        at_the_interface,
        "inputs and outputs are shaped as torch has them, (B, tokens, width) for texts",
    ),
    "tokens": ExceptionFrom(
        ("lookup", "transpose", "reshape"),
        by_tokens,
        "a text's ids and end mark, or a label, are looked up on the CPU, once a prompt",
    ),
    "epsilon": ExceptionFrom(
        ("epsilon",),
        is_exact,
        "kept in float32, which norms may have from iOS 17 on: made as large as float16 keeps, as --target 16 does, it "
        "costs 1.4 dB in the small denoiser",
    ),
    "compiler": ExceptionFrom(
        ("weights",), is_under_the_limit, "under 1 GB; but one of 667 MB was reported to be too large for a compiler"
    ),
}


def _is_vector(declared: TensorType) -> bool:
    return declared.size == max(declared.shape, default=1)


def exception_from(rule: RuleName, operation: Operation, flow: Dataflow) -> str | None:
    """The name of the first exception that covers a breach; None where it is one indeed."""
    for name, exception in EXCEPTIONS.items():
        if rule in exception.rules and exception.covers(operation, flow):
            return name
    return None
