"""What may happen to a file, as strategies of hypothesis."""

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=6), part, max_size=3),
    max_leaves=6,
)


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
