"""What of a stream cannot be used: named, counted, and too much of it refused."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch.utilities import rank_zero_warn

_NAMED = 5


class Fault(NamedTuple):
    """A sample, or the rest of a shard, that cannot be used.

    Attributes:
        shard: the shard's name.
        key: the sample's in the shard; empty where the shard itself is at fault.
        reason: what is wrong.
    """

    shard: str
    key: str
    reason: str

    def __str__(self) -> str:
        """A clause. Keys are strangers' bytes, which might command a terminal: they are quoted."""
        return f"{self.key!r} in {self.shard} {self.reason}" if self.key else f"{self.shard} {self.reason}"


class Tally(NamedTuple):
    """How many samples were left out.

    Attributes:
        faults: for what is wrong with them.
        filtered: for their size.
    """

    faults: int = 0
    filtered: int = 0

    def plus(self, other: "Tally") -> "Tally":
        """Of both."""
        return Tally(self.faults + other.faults, self.filtered + other.filtered)


class Skipped:
    """What a run left out.

    Args:
        limit: so many faults are borne a pass, over all processes and sessions: each pass meets the same ones again.
        file: gets a line of JSON a fault; None for none.

    Attributes:
        before: in earlier sessions, of all processes.
        own: in this session, of this process.
        others: likewise of the other processes, when all of them last told each other.
        passes: how often all that there is has been read, the pass that is under way included.
    """

    def __init__(self, limit: int, file: Path | None) -> None:
        self.limit, self.file = limit, file
        self.before, self.own, self.others = Tally(), Tally(), Tally()
        self.passes = 1

    @property
    def total(self) -> Tally:
        """As far as is known."""
        return self.before.plus(self.own).plus(self.others)

    def add(self, faults: Sequence[Fault], filtered: int = 0, gave_up: bool = False) -> None:
        """Counts, and names the faults: the first few in warnings, all in the file.

        Args:
            faults: what cannot be used.
            filtered: how many images were too small.
            gave_up: whether whoever met them did not go on for their number.

        Raises:
            ValueError: where there are more than the limit, or somebody gave up.
        """
        if faults and self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(fault._asdict()) + "\n" for fault in faults)
        for fault in faults[: max(0, _NAMED - self.own.faults)]:
            rank_zero_warn(f"skipped: {fault}")
        self.own = self.own.plus(Tally(len(faults), filtered))
        self.check(faults, gave_up)

    def check(self, latest: Sequence[Fault] = (), gave_up: bool = False) -> None:
        """Raises ValueError where there are more than the limit, or somebody gave up, naming the last of the latest."""
        if gave_up or self.total.faults > self.limit * self.passes:
            passes = "" if self.passes == 1 else f" in {self.passes} passes over all shards"
            last = f", the last of them: {latest[-1]}" if latest else ""
            listed = "" if self.file is None else f"; {self.file} names them"
            raise ValueError(
                f"{self.total.faults} samples or shards could not be used{passes}, and data.skip_limit is "
                f"{self.limit}{last}{listed}. Mend them, or raise data.skip_limit"
            )
