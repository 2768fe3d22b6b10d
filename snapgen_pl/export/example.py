"""What a graph is checked on: an example of its inputs, and what torch gives for it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from snapgen_pl.export.graphs import Graph
from snapgen_pl.whole_files import whole_file

_INPUT, _OUTPUT = "input.", "output."


class Example(NamedTuple):
    """An example, on the CPU.

    Attributes:
        inputs: by name.
        expected: what torch gives in fp32, by name.
    """

    inputs: Mapping[str, Tensor]
    expected: Mapping[str, Tensor]

    def write(self, path: Path) -> None:
        """Writes it as safetensors, whole or not at all."""
        named = {_INPUT + name: tensor for name, tensor in self.inputs.items()}
        named |= {_OUTPUT + name: tensor for name, tensor in self.expected.items()}
        with whole_file(path) as part:
            save_file({name: tensor.detach().contiguous() for name, tensor in named.items()}, part)


class _AccurateNorms(TorchDispatchMode):  # type: ignore[no-untyped-call]  # missing from torch's stubs
    """Group norms of maps that lie channels first.

    For channels_last, torch on a CPU adds up a group in float32 number by number: at 1024 px it is off by 5e-4, where
    float16's own limit is 1e-3 and the other layout's error 1e-7.
    """

    def __torch_dispatch__(
        self, operator: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if operator is torch.ops.aten.native_group_norm.default:
            args = (args[0].contiguous(), *args[1:])
        return operator(*args, **(kwargs or {}))


@torch.no_grad()
def example_of(graph: Graph) -> Example:
    """Runs a graph on its own example."""
    with _AccurateNorms():  # type: ignore[no-untyped-call]
        made = graph.module(*graph.inputs.values())
    outputs = (made,) if isinstance(made, Tensor) else made
    return Example(graph.inputs, dict(zip(graph.outputs, outputs, strict=True)))


def read_example(path: Path) -> Example:
    """Reads what was written.

    Raises:
        ValueError: where it is missing or damaged.
    """
    try:
        named = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}); export the run again") from error
    return Example(*({name.removeprefix(start): tensor for name, tensor in named.items() if name.startswith(start)}
                     for start in (_INPUT, _OUTPUT)))  # fmt: skip
