"""Classes that a file names, built without importing what is not trusted: such files come from anywhere."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from torch import nn

from snapgen_pl.asked_size import check_layers, check_size
from snapgen_pl.config_files import Value
from snapgen_pl.diffusers_weights import read_tensors
from snapgen_pl.errors import UsageError
from snapgen_pl.trained_run import built
from snapgen_pl.whole_files import read_json

PACKAGE = "snapgen_pl"
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")

P = TypeVar("P")


def check_classes(config: Value) -> None:
    """Raises ValueError where a file names a class of neither this package nor a module that is imported already."""
    for path in _class_paths(config):
        # To import a module runs it.
        if path.partition(".")[0] != PACKAGE and path.rpartition(".")[0] not in sys.modules:
            raise ValueError(f"the file names {path}, which is not of {PACKAGE}; import it first, if you trust it")


def build(kind: type[P], config: Value) -> P:
    """An object of a class with its arguments, as a run's config.yaml has them.

    Args:
        kind: what its class has to be a subclass of.
        config: class_path and init_args.

    Raises:
        ValueError: for a class of neither this package nor a module that is imported already, and for one that is no
            ``kind`` or does not take the arguments.
    """
    check_classes(config)
    try:
        part: P = built({"part": config}, part=kind).part
    except UsageError as error:
        raise ValueError(f"the file makes no {kind.__name__}: {error.key}: {error}") from error
    return part


def check_fits(network: Value, folder: Path) -> None:
    """Holds what a part's config.json asks for against the weights beside it, before it is built.

    Args:
        network: its class and arguments.
        folder: the part's.

    Raises:
        ValueError: where weights are missing or damaged, or fill less than it asks for; or as :func:`check_classes`.
    """
    config = folder / "config.json"
    check_classes(network)
    check_layers(network, config)
    size = sum(tensor.nbytes for tensor in read_tensors(folder).values())
    check_size(lambda: built({"part": network}, part=nn.Module), size, config)


@contextmanager
def opening(config: Path, kind: str) -> Iterator[None]:
    """Within, what diffusers raises at a damaged folder becomes a ValueError that names it.

    Args:
        config: the folder's, an object in JSON: diffusers takes other JSON for a path, or a name on the hub.
        kind: what its folder is to hold, in words.

    Raises:
        ValueError: where the file is missing or damaged, or what is done within fails.
    """
    read_json(config, "get the folder again")
    try:
        yield
    except ValueError:
        raise
    except Exception as error:  # diffusers raises what it likes
        raise ValueError(
            f"{config.parent} holds no whole {kind} ({type(error).__name__}: {error}); get the folder again"
        ) from error


def _class_paths(value: Value) -> Iterator[str]:
    """Whatever may be read as the path of a class, for it need not stand under class_path."""
    if isinstance(value, str) and _DOTTED.fullmatch(value):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            if key != "path":  # of files, given to classes that take it as it is
                yield from _class_paths(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _class_paths(each)
