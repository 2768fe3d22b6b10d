"""The index of weights that lie in several files, as diffusers and transformers write it."""

import json
import re
from pathlib import Path

_FILE = re.compile(r"[\w.-]{1,200}\.safetensors", re.ASCII)


def indexed_files(index: Path) -> list[str]:
    """The names of the files, each once, in order; they lie beside the index.

    Raises:
        ValueError: where it is no index, or names anything but safetensors beside it.
    """
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if strangers := [name for name in names if not _FILE.fullmatch(name)]:
            raise ValueError(f"it names {strangers[0]!r}")
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"{index} is no index of weights ({error!r}); download it again") from error
    return names
