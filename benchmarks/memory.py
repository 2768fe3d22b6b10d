"""The most memory that a call holds."""

import ctypes
from collections.abc import Callable
from pathlib import Path

_PROCESS = Path("/proc/self")


def peak_bytes(call: Callable[[], object]) -> int | None:
    """Resident memory of this process at its highest during a call, over what it was before; None outside Linux.

    What glibc's allocator kept from calls before is given back first, or the call would be found to need less.
    """
    forget = _PROCESS / "clear_refs"
    if not forget.exists():
        return None
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
    forget.write_text("5")  # the high-water mark falls to what is held now
    before = _resident("VmHWM")
    call()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    lines = dict(line.split(":", 1) for line in (_PROCESS / "status").read_text().splitlines())
    return 1024 * int(lines[name].split()[0])
