"""Where a step's time goes, part by part."""

from collections.abc import Callable
from typing import Literal

from benchmarks.timing import Sample, now, spent

Part = Literal["student", "teacher", "heads", "optimizer", "average"]


class Clock:
    """Adds up what the parts of a step take: what passes before a mark belongs to the part that it names.

    Args:
        now: reads the time; on a GPU it must wait for the device first.
    """

    def __init__(self, now: Callable[[], Sample] = now) -> None:
        self._now = now
        self._last: Sample | None = None  # None where nobody asks
        self._parts: dict[Part, Sample] = {}

    def parts(self, step: Callable[[], None]) -> dict[Part, Sample]:
        """Takes a step, and tells its parts; what passes after its last mark belongs to none."""
        self._parts, self._last = {}, self._now()
        step()
        self._last = None
        return self._parts

    def mark(self, part: Part) -> None:
        """Ends a part. Costs nothing where nobody asks."""
        if self._last is not None:
            before, self._last = self._last, self._now()
            self._parts[part] = self._parts.get(part, Sample(0.0, 0.0)).plus(spent(before, self._last))
