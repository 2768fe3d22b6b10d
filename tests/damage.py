"""What may happen to a file, as strategies of hypothesis."""

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

# Names that lead out of a folder, that no file system takes, or that are no text; numbers that nothing holds.
HOSTILE = ("../out", "/etc/hostname", "a\0b", "a" * 5000, "\ud800", -1, 2**31, 2**64, 10**400, 1e300)
# Nested too deep, a number too large to be one, a key twice, an end too early, and other text than UTF-8.
BROKEN = (b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000, b"1e400", b'{"a": 1, "a": 2}', b"", b'{"a"', b'"\xff"')

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(HOSTILE),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=6), part, max_size=3),
    max_leaves=6,
)


# Pieces of YAML.
PIECES = st.sampled_from(
    ["a", "b: ", "- ", "? ", ": ", "&x ", "*x", "[", "]", "{", "}", ",", "\n", "  ", "!!int ", "2020-13-45"]
)
YAML = st.text() | st.lists(PIECES, max_size=12).map("".join)


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Bits flipped, the end cut off, a stretch zeroed, left out or repeated, or foreign bytes put in."""
    first = draw(st.integers(0, len(content) - 1))
    stretch = slice(first, first + draw(st.integers(1, 64)))
    part = content[stretch]
    changed = draw(
        st.sampled_from([b"", bytes(len(part)), part + part, content[first:]])
        | st.binary(max_size=16)
        | st.integers(0, 7).map(lambda bit: bytes([part[0] ^ 1 << bit]) + part[1:])
    )
    end = content[stretch.stop :] if draw(st.integers(0, 3)) else b""
    return content[:first] + changed + end


@st.composite
def damaged_json(draw: st.DrawFn, content: Any) -> Any:
    """One or two entries, of whatever depth, removed or replaced by anything else."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from([None, *_places(content)]))
        if place is None:
            return draw(JSON)
        holder, key = place
        if draw(st.booleans()):
            del holder[key]
        else:
            holder[key] = draw(JSON)
        if not content:
            break
    return content


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    entries = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in list(entries):
        yield content, key
        yield from _places(value)


def damaged_file(name: str, content: bytes) -> st.SearchStrategy[bytes]:
    """What may become of a file; of JSON and YAML, by their names, also other JSON and YAML."""
    if name.endswith(".yaml"):
        return damaged_bytes(content) | YAML.map(lambda text: text.encode("utf-8", "surrogatepass"))
    if name.endswith(".json"):
        other = damaged_json(json.loads(content)).map(lambda changed: json.dumps(changed).encode())
        return other | damaged_bytes(content) | st.sampled_from(BROKEN)
    return damaged_bytes(content)
