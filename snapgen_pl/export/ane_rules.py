"""Rules of the Neural Engine that can be checked in a package without one, a function each.

Sources: [rules] Apple's Neural Engine rules (apple/coreai-models, ``neural_engine_rules.md``); [article] "Deploying
Transformers on the Apple Neural Engine" (2022), with its code in apple/ml-ane-transformers; [diffusion]
apple/ml-stable-diffusion; [community] reports of what compiled and what did not.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from snapgen_pl.export.constant import ELEMENTS, TensorType
from snapgen_pl.export.dataflow import Dataflow, is_constant
from snapgen_pl.export.limits import (
    DOUBTED_WEIGHTS,
    LEAST_HALF,
    MAX_CHANNELS,
    MAX_RANK,
    MAX_SIDE,
    MIN_LAST_AXIS,
    MOST_HALF,
    ROW_BYTES,
)
from snapgen_pl.export.package import Operation

RuleName: TypeAlias = Literal[
    "rank", "dtype", "sides", "axis", "product", "attention", "softmax", "reshape", "transpose", "tile", "lookup",
    "constant", "epsilon", "weights",
]  # fmt: skip
RESHAPES = ("reshape", "squeeze", "expand_dims", "flatten2d")
LOOKUPS = ("gather", "gather_along_axis", "gather_nd", "one_hot", "scatter", "scatter_along_axis", "scatter_nd")


class Breach(NamedTuple):
    """Something that breaks a rule.

    Attributes:
        value: what it is, in words.
        bytes: that it takes; for the last axis, those of its padding.
    """

    value: str
    bytes: int


Rule: TypeAlias = Callable[[Operation, Dataflow], Iterator[Breach]]


def rank(operation: Operation, flow: Dataflow) -> Iterator[Breach]:
    """Five axes at most [rules]."""
    yield from (_breach(made) for made in _floating(operation) if len(made.shape) > MAX_RANK)


def dtype(operation: Operation, flow: Dataflow) -> Iterator[Breach]:
    """Float16 everywhere: float32 falls back to another processor [rules]."""
    yield from (_breach(made) for made in _floating(operation) if made.dtype != "FLOAT16")


def sides(operation: Operation, flow: Dataflow) -> Iterator[Breach]:
    """Height, width and depth up to 16,384, batch and channels up to 65,536 [community]."""
    for made in _floating(operation):
        channels, rest = made.shape[:2], made.shape[2:]
        if max(channels, default=1) > MAX_CHANNELS or max((*rest, *made.shape[-1:]), default=1) > MAX_SIDE:
            yield _breach(made)


def axis(operation: Operation, flow: Dataflow) -> Iterator[Breach]:
    """A last axis of 64 bytes or more, to which each row is padded [article, rules]; so few numbers waste little."""
    for made in _floating(operation):
        last = made.shape[-1] if made.shape else 1
        if last < MIN_LAST_AXIS < made.size:
            number = ELEMENTS[made.dtype].bits // 8
            padded = -(-last * number // ROW_BYTES) * ROW_BYTES
            yield Breach(str(made), made.size // last * padded - made.size * number)


def product(operation: Operation, flow: Dataflow) -> Iterator[Breach]:
    """1x1 convolutions on (B, C, 1, S), and einsum by heads, rather than linear and matmul [article, rules]."""
    if operation.type in ("linear", "matmul"):
        yield from map(_breach, operation.outputs.values())


def attention(operation: Operation, flow: Dataflow) -> Iterator[Breach]:
    """Attention head by head rather than as one operator [rules, diffusion]."""
    if operation.type == "scaled_dot_product_attention":
        yield from map(_breach, operation.outputs.values())


def softmax(operation: Operation, flow: Dataflow) -> Iterator[Breach]:
    """Softmax over channels, the second axis, where scores are (B, keys, 1, queries) [article, diffusion]."""
    if operation.type == "softmax":
        made = flow.type_of(operation)
        if _integers(operation, flow, "axis", [-1])[0] % len(made.shape) != 1:
            yield _breach(made)


def reshape(operation: Operation, flow: Dataflow) -> Iterator[Breach]:
    """Few reshapes that change the last axis, which is not packed: each copies [article, principle 3]."""
    if operation.type in RESHAPES:
        for made in _floating(operation):
            if made.shape[-1:] != flow.type_of(operation).shape[-1:]:
                yield Breach(f"{flow.type_of(operation)} to {made.shape}", made.stored_bytes)


def transpose(operation: Operation, flow: Dataflow) -> Iterator[Breach]:
    """Few transposes of the last axis, which copy too: one, of keys, in Apple's attention [article, principle 3]."""
    if operation.type == "transpose":
        order = _integers(operation, flow, "perm")
        if order[-1] % len(order) != len(order) - 1:
            yield from (Breach(f"{flow.type_of(operation)} to {made.shape}", made.stored_bytes)
                        for made in _floating(operation))  # fmt: skip


def tile(operation: Operation, flow: Dataflow) -> Iterator[Breach]:
    """Nothing repeated in memory that a product broadcasts, such as shared heads [article, principle 3]."""
    if operation.type == "tile":
        yield from map(_breach, operation.outputs.values())


def lookup(operation: Operation, flow: Dataflow) -> Iterator[Breach]:
    """Nothing looked up by index: it runs on the CPU, or not at all [rules]; tables of positions are constants."""
    if operation.type in LOOKUPS:
        yield from map(_breach, operation.outputs.values())


def constant(operation: Operation, flow: Dataflow) -> Iterator[Breach]:
    """Float16 constants that are normal, and at most 4e4: -4e4 for -inf in masks [rules, common_issues.md].

    Of compressed weights, tables and scales are looked at where they are constants of their own.
    """
    for held in operation.attributes.values() if operation.type == "const" else ():
        if held.type.dtype != "FLOAT16" or isinstance(held.stored, str):
            continue
        magnitude = held.stored.view(np.uint16) & 0x7FFF  # sorts as the numbers do, infinities and NaN last
        subnormal = int(np.count_nonzero((magnitude > 0) & (magnitude < _bits(LEAST_HALF))))
        large = int(np.count_nonzero(magnitude > _bits(MOST_HALF)))
        if subnormal or large:
            yield Breach(f"{held.type}: {large} over 4e4 or not finite, {subnormal} subnormal", held.type.stored_bytes)


def epsilon(operation: Operation, flow: Dataflow) -> Iterator[Breach]:
    """No epsilon under 6e-5, float16's least normal number, which would be none [rules]."""
    held = flow.constant(operation, "epsilon")
    if held is not None and not isinstance(held.stored, str) and 0 < (found := float(held.stored[0])) < LEAST_HALF:
        yield Breach(f"{held.type.dtype} {found:.1e}", held.type.stored_bytes)


def weights(operation: Operation, flow: Dataflow) -> Iterator[Breach]:
    """Under 1 GB a package [diffusion], and better under the 667 MB that a compiler failed on [community]."""
    if operation.type == "package" and (size := flow.package.stored_bytes) >= DOUBTED_WEIGHTS:
        yield Breach(f"{size / 1e6:,.0f} MB", size)


RULES: Mapping[RuleName, Rule] = {
    "rank": rank,
    "dtype": dtype,
    "sides": sides,
    "axis": axis,
    "product": product,
    "attention": attention,
    "softmax": softmax,
    "reshape": reshape,
    "transpose": transpose,
    "tile": tile,
    "lookup": lookup,
    "constant": constant,
    "epsilon": epsilon,
    "weights": weights,
}


def _floating(operation: Operation) -> Iterator[TensorType]:
    """What it makes of floating numbers; constants, which are stored as they are used, are not made."""
    if not is_constant(operation):
        yield from (made for made in operation.outputs.values() if made.dtype.startswith("FLOAT"))


def _breach(made: TensorType) -> Breach:
    return Breach(str(made), made.stored_bytes)


def _integers(operation: Operation, flow: Dataflow, argument: str, default: list[int] | None = None) -> list[int]:
    held = flow.constant(operation, argument)
    if held is None or isinstance(held.stored, str):
        assert default is not None, f"{operation} has no constant {argument}"
        return default
    return [int(each) for each in held.stored]


def _bits(number: float) -> int:
    return int(np.float16(number).view(np.uint16))
