"""What several config files declare together, by the rules of ``fit``, without its parser: that imports the trainer."""

import inspect
import pydoc
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import get_args, get_origin

from snapgen_pl.config_files import Value, load_config


def merged_config(files: Sequence[Path]) -> dict[str, Value]:
    """Reads config files, later ones over earlier ones.

    Args:
        files: YAML.

    Raises:
        ValueError: for a file that is no config, or another class that there is none of.
    """
    given = (_nested(key, value) for file in files for key, value in load_config(file).items())
    return reduce(merged, given, {})


def merged(base: dict[str, Value], delta: dict[str, Value]) -> dict[str, Value]:
    """A configuration with a later one over it, as jsonargparse merges them.

    A list takes the place of a list, unless its key ends in ``+``, which appends. So does a mapping where the class
    says that its argument is one; other mappings are settings, and merge. A class in place of another keeps the
    arguments that it takes too; a mapping over a class that is none itself is its arguments.

    Args:
        base: the earlier one, or a part of it.
        delta: the later one.

    Raises:
        ValueError: for another class that there is none of.
    """
    return _merged(base, delta, None)


def _merged(base: dict[str, Value], delta: dict[str, Value], owner: str | None) -> dict[str, Value]:
    """As :func:`merged`; ``owner`` is the class whose arguments these are."""
    found = dict(base)
    for key, value in delta.items():
        name = key.removesuffix("+")
        if name == key:
            found[name] = _over(base.get(name), value, owner, name)
        else:
            before = base.get(name)
            found[name] = [
                *(before if isinstance(before, list) else []),
                *(value if isinstance(value, list) else [value]),
            ]
    return found


def _over(base: Value, value: Value, owner: str | None, name: str) -> Value:
    if isinstance(base, dict) and "class_path" in base and isinstance(value, dict | str):
        return _class_over(base, value)
    if not isinstance(value, dict):
        return value
    if "class_path" in value:
        return _class_over({}, value)
    if not isinstance(base, dict) or (base and owner is not None and _is_mapping(owner, name)):
        base = {}
    return _merged(base, value, None)


def _class_over(base: dict[str, Value], value: dict[str, Value] | str) -> Value:
    """A class, or arguments of it, over a class."""
    if isinstance(value, str):
        value = {"class_path": value}
    elif not value.keys() & {"class_path", "init_args", "dict_kwargs"}:
        value = {"init_args": value}
    before = str(base.get("class_path", ""))
    kind = str(value.get("class_path", before))
    if before.rpartition(".")[2] == kind:  # by its name alone
        kind = before
    kept, given = base.get("init_args"), value.get("init_args")
    kept = kept if isinstance(kept, dict) else {}
    if before not in ("", kind):
        kept = _taken(kind, kept)
    node = {key: each for key, each in {**base, **value}.items() if key != "init_args"} | {"class_path": kind}
    arguments = _merged(kept, given, kind) if isinstance(given, dict) else kept
    return node | ({"init_args": arguments} if arguments or "init_args" in (*base, *value) else {})


def _taken(kind: str, arguments: dict[str, Value]) -> dict[str, Value]:
    """Those that a class takes."""
    takes = inspect.signature(_class(kind)).parameters
    if any(each.kind is each.VAR_KEYWORD for each in takes.values()):
        return arguments
    return {key: value for key, value in arguments.items() if key in takes}


def _is_mapping(kind: str, name: str) -> bool:
    """Whether a class says that an argument is a mapping, which has no defaults to merge with."""
    if (argument := inspect.signature(_class(kind)).parameters.get(name)) is None:
        return False
    hint = argument.annotation
    return any(get_origin(each) in (dict, Mapping) for each in (hint, *get_args(hint)))


def _class(path: str) -> type:
    found = pydoc.locate(path)
    if not isinstance(found, type):
        raise ValueError(f"there is no class {path}; check the class_path")
    return found


def _nested(key: str, value: Value) -> dict[str, Value]:
    """``a.b: value`` as a file may have it at its top."""
    first, _, rest = key.partition(".")
    return {first: _nested(rest, value) if rest else value}
