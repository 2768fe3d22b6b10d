"""What a configuration asks for, held against the weights that are to fill it: such files come from anywhere."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
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
    """As :func:`check_size`, by the files beside the configuration; where there are none, its reader says so.

    Args:
        make: makes the network.
        config: the file that asks for it.
        pattern: of the names of files of weights.

    Raises:
        ValueError: where it is too large.
    """
    if files := list(config.parent.glob(pattern)):
        check_size(make, sum(file.stat().st_size for file in files), config)
