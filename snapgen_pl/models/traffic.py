"""What a network moves: the bytes that each operation of a forward pass reads and writes, and its multiply-accumulates.

Numbers are float16, weights and activations alike; an operation reads its operands from memory and writes its result to
it. What is not arithmetic is free, as in the packages that are exported here: views, and copies that only change the
order of axes. So is what depends on weights alone, which an exporter folds. Of a table that is gathered from, as much
is read as is gathered.

Whether a pointwise operation is one of its own is left open, see :meth:`Traffic.operations`.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from snapgen_pl.models.count import forward_on_meta
from snapgen_pl.models.denoiser import Conditioning

BYTES = 2  # of a number in float16

_COPIES = {torch.ops.aten.clone.default, torch.ops.aten._to_copy.default}
_GATHERS = {torch.ops.aten.embedding.default, torch.ops.aten.index.Tensor}


class Operation(NamedTuple):
    """What one pass over memory does.

    Attributes:
        name: of the operator that it begins with.
        macs: multiply-accumulates, by the denoisers' convention of :mod:`snapgen_pl.models.count`.
        bytes: read and written.
    """

    name: str
    macs: int
    bytes: int


class _Step(NamedTuple):
    name: str
    macs: int
    pointwise: bool
    reads: Mapping[int, int]  # numbers read, by value
    writes: Sequence[int]  # values


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation of a module's call; made by :func:`traffic`.

    Args:
        inputs: what the module is called with.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sizes: list[int] = []  # of each value, in numbers
        self._values: dict[int, int] = {}  # the value that a storage holds
        self._made: set[int] = set()  # values that depend on the inputs
        self._outputs: set[int] = set()
        self._steps: list[_Step] = []
        self._kept: list[Tensor] = []  # a storage that is freed would lend its place to another
        self._made.update(self._write(value) for value in inputs)

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs an operation and takes it down."""
        out = func(*args, **(kwargs or {}))
        read, written = _tensors((args, kwargs)), _tensors(out)
        # Before anything is written: an operation in place reads the value of before.
        reads: Counter[int] = Counter()
        for tensor in read:
            most = sum(result.numel() for result in written) if func in _GATHERS else tensor.numel()
            reads[self._value(tensor)] += min(tensor.numel(), most)
        storages = {_storage(tensor) for tensor in read}
        if not func._schema.is_mutable and written and all(_storage(tensor) in storages for tensor in written):
            return out
        if func in _COPIES:
            self._kept.append(out)
            self._values[_storage(out)] = self._value(read[0])
        elif self._made & reads.keys():
            writes = [self._write(tensor) for tensor in written]
            self._made.update(writes)
            formula: Callable[..., int] | None = flop_registry.get(func.overloadpacket)
            macs = 0 if formula is None else formula(*args, **(kwargs or {}), out_val=out) // 2
            pointwise = torch.Tag.pointwise in func.tags
            self._steps.append(_Step(str(func.overloadpacket), macs, pointwise, reads, writes))
        return out

    def end(self, result: object) -> None:
        """Takes down what the module returned."""
        self._outputs = {self._value(tensor) for tensor in _tensors(result)}

    def operations(self, fused: bool) -> list[Operation]:
        """The operations in their order.

        Args:
            fused: a pointwise operation (activation, residual sum, gain) belongs to the last of those that make its
                operands: that one reads its other operands and writes its result, and what lies between is never in
                memory unless others read it. Otherwise each is an operation of its own.
        """
        begun: dict[int, int] = {}  # the operation that makes a value
        operations: list[list[_Step]] = []
        for step in self._steps:
            makers = [begun[value] for value in step.reads if value in begun]
            # In the last of them, so that no operation needs a later one.
            place = max(makers) if fused and step.pointwise and makers else len(operations)
            if place == len(operations):
                operations.append([])
            operations[place].append(step)
            begun.update(dict.fromkeys(step.writes, place))
        needed = set(self._outputs)
        for place, steps in enumerate(operations):
            needed |= {value for step in steps for value in step.reads if begun.get(value) != place}
        return [self._operation(steps, needed) for steps in operations]

    def _operation(self, steps: Sequence[_Step], needed: set[int]) -> Operation:
        inside = {value for step in steps for value in step.writes}
        reads: Counter[int] = Counter()
        for step in steps:
            reads.update(step.reads)
        numbers = sum(min(count, self._sizes[value]) for value, count in reads.items() if value not in inside)
        numbers += sum(self._sizes[value] for value in inside & needed)
        return Operation(steps[0].name, sum(step.macs for step in steps), BYTES * numbers)

    def _value(self, tensor: Tensor) -> int:
        """The value that a tensor shows, in whole or in part; one that nothing wrote is a weight or a constant."""
        known = self._values.get(_storage(tensor))
        return self._write(tensor) if known is None else known

    def _write(self, tensor: Tensor) -> int:
        self._kept.append(tensor)
        self._sizes.append(tensor.numel())
        self._values[_storage(tensor)] = value = len(self._sizes) - 1
        return value


def traffic(module: nn.Module, *inputs: Tensor | Conditioning) -> Traffic:
    """Takes down the operations of a module's call on inputs of these shapes.

    Args:
        module: on any device; it is left as it is.
        inputs: its positional inputs, on the meta device.
    """
    seen = Traffic(_tensors(inputs))
    seen.end(forward_on_meta(module, inputs, seen))
    return seen


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key
