"""What a configuration asks for, held against the weights that are to fill it: such files come from anywhere."""

import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from snapgen_pl.whole_files import read_json

# More than any network that is read here has: DeepNet (arXiv 2203.00555), the deepest published, has as many.
_MOST_LAYERS = 1000
# What libraries, and we, call numbers of layers: num_hidden_layers, layers_per_block, n_layer, depth, middle_blocks.
_LAYERS = re.compile(r"(\w+_)?(layers?|depths?|blocks|experts)(_per_block)?")


def check_layers(asked: object, config: Path) -> None:
    """Refuses a configuration that asks for layers without end, before anything is built of it.

    Each layer is made in Python, on the meta device too, and some classes list their layers before they make one. So
    this comes before all else that is done with a stranger's configuration, weights or none.

    Args:
        asked: the configuration, or a part of it, as JSON or YAML have it.
        config: the file that it is from.

    Raises:
        ValueError: naming the file, what it asks for, and how many.
    """
    left = [("", asked)]  # not by recursion, which a file could nest too deep
    while left:
        key, value = left.pop()
        if isinstance(value, dict):
            left.extend((str(name), each) for name, each in value.items())
        elif isinstance(value, list | tuple):
            left.extend((key, each) for each in value)
        elif isinstance(value, int | float) and value > _MOST_LAYERS and _LAYERS.fullmatch(key):
            raise ValueError(
                f"{config} says {key}: {value:,}, and no network that is read here has more than {_MOST_LAYERS:,}; "
                "correct it, or get the folder again"
            )


def check_size(make: Callable[[], object], most: int, config: Path) -> None:
    """Refuses a network of more numbers than its weights have bytes, before any memory is taken for it.

    It is made on the meta device, and given up as soon as it has too many: a configuration may ask for layers without
    end, too. What else is wrong with it, its reader says.

    Args:
        make: makes the network.
        most: bytes of the weights that are to fill it.
        config: the file that asks for it, beside the weights.

    Raises:
        ValueError: where it is too large, naming the file.
    """
    made = 0

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal made
        made += 0 if tensor is None else tensor.numel()
        if made > most:
            raise OverflowError

    hooks = (register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count))
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            make()
    except Exception as error:
        # A size that is no size of a tensor is too large as well.
        if made > most or "overflow" in str(error).lower():
            raise ValueError(
                f"{config.parent} does not fit its {config.name}: that asks for a network of more than {most:,} "
                f"numbers, and the weights have {most:,} bytes; get the folder again"
            ) from None
    finally:
        for hook in hooks:
            hook.remove()


def check_size_by_files(make: Callable[[], object], config: Path, pattern: str = "*.safetensors") -> None:
    """As :func:`check_layers` and :func:`check_size`, by the files beside the configuration.

    Where there are none, its reader says so.

    Args:
        make: makes the network.
        config: the file that asks for it, in JSON.
        pattern: of the names of files of weights.

    Raises:
        ValueError: where it is too large, or the configuration is damaged.
    """
    if config.is_file():
        check_layers(read_json(config, "get the folder again"), config)
    if files := list(config.parent.glob(pattern)):
        check_size(make, sum(file.stat().st_size for file in files), config)
