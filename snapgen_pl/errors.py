"""What a user reads when a command fails: one paragraph that says what was wrong, where, and the remedy.

jsonargparse nests its messages and pads them with every alternative of a Union; :func:`explain` keeps the path of keys
and the innermost reason, and adds the nearest accepted spelling.
"""

import difflib
import importlib
import inspect
import os
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, NoReturn

from jsonargparse import ArgumentParser

_PADDING = re.compile(r"(Does not validate against any|Subtypes: |Errors:|Given value|- Expected a <class 'NoneType'>)")
_KEY = re.compile(r'Parser key "([^"]+)"[^:]*:\s*(.*)')
_CLASS = re.compile(r"Problem with given class_path '([^']+)':\s*(.*)")
_UNKNOWN = re.compile(r"(?:Option|.* does not accept option) '([^']+)'")
_UNRECOGNIZED = re.compile(r"unrecognized arguments: --([\w.]+)")
_MISSING = re.compile(r"the following arguments are required: (?:\w+\.)?([\w.]+)")
_NO_CLASS = re.compile(r"module '([^']+)' has no attribute '([^']+)'")
_DEAD_WORKER = "DataLoader worker"  # so PyTorch begins to tell of one
_LISTS = ("<class 'collections.abc.Sequence'>", "<class 'list'>", "<class 'tuple'>")
_EXPECTED = re.compile(r"Expected an? (.+?)\. Got value: (.*)")


class UsageError(Exception):
    """A command that cannot be parsed; ends with exit status 2.

    Attributes:
        key: the dotted key that is wrong, without ``init_args``; empty where the message is about no key.
        value: the scalar given there, if known.
    """

    def __init__(self, message: str, key: str = "", value: str | None = None) -> None:
        super().__init__(message)
        self.key = key
        self.value = value


class _Complaint(NamedTuple):
    keys: tuple[str, ...]
    class_path: str | None
    reasons: tuple[str, ...]


class ShortErrors(ArgumentParser):
    """A parser that raises :class:`UsageError` where jsonargparse prints its usage and exits."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises; the parsers nested in arguments keep raising jsonargparse's errors, which carry the path of keys."""
        if not self.exit_on_error or debugging():
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        raise explain(message, parser.get_defaults().keys()) from ex


def debugging() -> bool:
    """Whether the user asked for tracebacks by SNAPGEN_DEBUG or JSONARGPARSE_DEBUG."""
    return any(os.environ.get(name, "") not in ("", "0") for name in ("SNAPGEN_DEBUG", "JSONARGPARSE_DEBUG"))


def explain(message: str, known: Iterable[str]) -> UsageError:
    """A parser's message in one paragraph.

    Args:
        message: what jsonargparse says.
        known: dotted keys the parser accepts.
    """
    known = set(known)
    keys, class_path, reasons = _read(message)
    reason = "; ".join(reasons)
    if class_path and (match := _UNKNOWN.match(reason)):
        name = match[1].split(".")[0]
        hint = did_you_mean(name, _arguments(class_path))
        return UsageError(f"{class_path} takes no such argument{hint}", ".".join((*keys, name)))
    if match := _UNKNOWN.match(reason) or _UNRECOGNIZED.match(reason):
        key, siblings = _first_unknown(match[1], known)
        return UsageError(f"no such key{did_you_mean(key.split('.')[-1], siblings)}", key)
    if match := _MISSING.match(reason):
        remedy = f": write `{match[1]}: ...` in the config or give --{match[1]}" if "config" in known else ""
        return UsageError(f"is required{remedy}", match[1])
    if match := _NO_CLASS.search(reason):
        return UsageError(
            f"module {match[1]} has no class {match[2]}{did_you_mean(match[2], _classes(match[1]))}",
            ".".join(keys),
            class_path,
        )
    if match := _EXPECTED.fullmatch(reason):
        wanted = f"a list such as [{match[2]}]" if match[1] in _LISTS else _type_name(match[1])
        return UsageError(f"expected {wanted}, got {match[2]!r}", ".".join(keys), match[2])
    return UsageError(reason, ".".join(keys))


def is_told(error: BaseException) -> bool:
    """Whether an exception tells a user all: of what was given, of files and disks, of numbers, or of a dead worker."""
    told = isinstance(error, UsageError | ValueError | OSError | FloatingPointError)
    return told or str(error).startswith(_DEAD_WORKER)


def reason(error: BaseException) -> str:
    """What an exception says, in a paragraph."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if str(error).startswith(_DEAD_WORKER):
        return (
            f"{str(error).splitlines()[0].strip()} The machine may lack memory: set fewer workers or a smaller batch "
            "(data.workers, data.batch_size); the last checkpoint stands"
        )
    return one_paragraph(str(error))


def one_paragraph(message: str) -> str:
    """The message of an exception without the padding that jsonargparse adds round those of constructors."""
    padded = any(_PADDING.match(line.strip()) for line in message.splitlines())
    return (" ".join(_strip(message)) if padded else message.strip()) or "no message"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A remedy to append: the nearest known names, else, where they are few, all of them."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=3)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; known: {', '.join(names)}" if 0 < len(names) <= 20 else ""


def _strip(message: str) -> list[str]:
    lines = [line.strip() for line in message.splitlines()]
    return [line.removeprefix("- ") for line in lines if line and not _PADDING.match(line)]


def _read(message: str) -> _Complaint:
    """Splits a nested message into its path of keys, the innermost class and what is left."""
    keys: list[str] = []
    class_path = None
    reasons = []
    for line in _strip(message):
        rest = line
        while match := _KEY.fullmatch(rest) or _CLASS.fullmatch(rest):
            if match.re is _KEY:
                keys.append(match[1])
            else:
                class_path = match[1]
            rest = match[2]
        if rest:
            reasons.append(rest)
    return _Complaint(tuple(keys), class_path, tuple(reasons))


def _first_unknown(key: str, known: Iterable[str]) -> tuple[str, list[str]]:
    """The shortest prefix of a key that is not accepted, and what is accepted in its place."""
    paths = [tuple(path.split(".")) for path in known]
    parts = tuple(key.split("."))
    for depth in range(len(parts)):
        siblings = {path[depth] for path in paths if path[:depth] == parts[:depth] and len(path) > depth}
        if parts[depth] not in siblings:
            return ".".join(parts[: depth + 1]), sorted(siblings)
    return key, []


def _arguments(class_path: str) -> Sequence[str]:
    module, _, name = class_path.rpartition(".")
    return list(inspect.signature(getattr(importlib.import_module(module), name)).parameters)


def _classes(module: str) -> list[str]:
    return [name for name, _ in inspect.getmembers(importlib.import_module(module), inspect.isclass)]


def _type_name(hint: str) -> str:
    """``<class 'int'>`` as ``int``, ``typing.Literal['a', 'b']`` as ``'a' or 'b'``."""
    if literal := re.fullmatch(r"typing\.Literal\[(.+)\]", hint):
        return literal[1].replace(", ", " or ")
    return re.sub(r"<class '([^']+)'>", r"\1", hint).replace("typing.", "")
