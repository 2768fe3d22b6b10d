"""The most memory that a call holds."""

from collections.abc import Callable
from pathlib import Path

_PROCESS = Path("/proc/self")


def peak_bytes(call: Callable[[], object]) -> int | None:
    """Resident memory of this process at its highest during a call, over what it was before; None outside Linux.

    What an allocator kept from calls before is not counted: measure before timing.
    """
    forget = _PROCESS / "clear_refs"
    if not forget.exists():
        return None
    forget.write_text("5")  # the high-water mark falls to what is held now
    before = _resident("VmHWM")
    call()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    lines = dict(line.split(":", 1) for line in (_PROCESS / "status").read_text().splitlines())
    return 1024 * int(lines[name].split()[0])
