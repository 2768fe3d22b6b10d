"""What a graph is checked on: an example of its inputs, and what torch gives for it."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

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


@torch.no_grad()
def example_of(graph: Graph) -> Example:
    """Runs a graph on its own example."""
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
