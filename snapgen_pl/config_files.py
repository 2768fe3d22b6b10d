"""YAML config files as text: checked before anything heavy is imported, searched for the line of a key, compared."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import yaml

Scalar: TypeAlias = bool | int | float | str | None
Value: TypeAlias = "Scalar | list[Value] | dict[str, Value]"

# Levels that a class in a config adds around its arguments; messages and readers name keys without them.
_WRAPPERS = ("init_args", "dict_kwargs")


class Difference(NamedTuple):
    """A key whose value differs between two configs; ``None`` stands for null and for absent alike.

    Attributes:
        key: its dotted path.
        old: its value there before.
        new: its value now.
    """

    key: str
    old: Value
    new: Value


def check_config(path: Path) -> None:
    """Reads a config as far as YAML goes.

    Raises:
        ValueError: naming file and line, if the file is not YAML, not a mapping, gives one key twice, has keys that
            are no names, or holds itself.
    """
    node = _compose(path)
    if not isinstance(node, yaml.MappingNode):
        raise ValueError(f"{path}: a config is a mapping such as `model: ...`, and this file holds none")
    _check_keys(path, node)


def load_config(path: Path) -> dict[str, Value]:
    """A checked config as plain values.

    Raises:
        ValueError: as :func:`check_config`.
    """
    check_config(path)
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except Exception as error:  # PyYAML's constructors raise what they like
        raise ValueError(f"{path}: not a config: {error}") from error


def parse_yaml(text: str) -> dict[str, Value]:
    """A dumped config as plain values."""
    loaded: dict[str, Value] = yaml.safe_load(text)
    return loaded


def as_value(facts: Mapping[str, Any]) -> dict[str, Value]:
    """Facts as a config or a manifest holds them: mappings become dictionaries."""
    return {key: as_value(value) if isinstance(value, Mapping) else value for key, value in facts.items()}


def class_value(kind: type, /, **arguments: Value) -> Value:
    """A class with its arguments, as a config holds it."""
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": arguments}


def flatten(config: Value, prefix: str = "") -> dict[str, Value]:
    """The leaves of a config by dotted path; a list is a leaf, as is an empty mapping."""
    if not isinstance(config, dict) or not config:
        return {prefix: config}
    return {
        path: leaf
        for key, value in config.items()
        for path, leaf in flatten(value, f"{prefix}.{key}" if prefix else key).items()
    }


def differences(old: Value, new: Value) -> list[Difference]:
    """The leaves that differ, in the order of the new config, then those only the old one has."""
    before, after = flatten(old), flatten(new)
    return [
        Difference(key, before.get(key), after.get(key))
        for key in [*after, *(key for key in before if key not in after)]
        if before.get(key) != after.get(key)
    ]


def locate(path: Path, key: str, value: str | None = None) -> int | None:
    """The line, counted from 1, where a config gives a key.

    Args:
        path: the config.
        key: dotted path, as messages give it: without ``init_args`` and without places in lists.
        value: the scalar given there, to choose between elements of a list.
    """
    try:
        found = list(_find(_compose(path), tuple(key.split("."))))
    except RecursionError:  # it holds itself, as check_config says
        return None
    exact = [line for line, node in found if isinstance(node, yaml.ScalarNode) and node.value == value]
    return next(iter(exact or [line for line, _ in found]), None)


def _compose(path: Path) -> yaml.Node | None:
    try:
        text = path.read_text(encoding="utf-8")
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ValueError(f"{path}{place}: broken YAML: {error.problem or error.context}") from error
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path}: not a YAML text: {error}") from error


def _check_keys(path: Path, node: yaml.Node, above: tuple[yaml.Node, ...] = ()) -> None:
    """YAML itself lets the last of two equal keys win in silence, keys be anything, and nodes hold themselves."""
    line = node.start_mark.line + 1
    if any(node is each for each in above):
        raise ValueError(f"{path}:{line}: what stands here contains itself; write it out")
    above = (*above, node)
    if isinstance(node, yaml.SequenceNode):
        for element in node.value:
            _check_keys(path, element, above)
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"{path}:{line}: a key is a name, and this one is a list or a mapping")
            if key.value in lines:
                first = lines[key.value]
                raise ValueError(f"{path}:{line}: `{key.value}` is given twice, first in line {first}; keep one")
            lines[key.value] = line
            _check_keys(path, value, above)


def _find(node: yaml.Node | None, path: tuple[str, ...]) -> Iterator[tuple[int, yaml.Node]]:
    """Lines and values of the keys that a path of :func:`locate` may mean."""
    if isinstance(node, yaml.SequenceNode):
        for element in node.value:
            yield from _find(element, path)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            names = tuple(str(key.value).removesuffix("+").split("."))
            if names[0] in _WRAPPERS:
                yield from _find(value, path)
            elif names == path:
                yield key.start_mark.line + 1, value
            elif names == path[: len(names)]:
                yield from _find(value, path[len(names) :])
