"""What in a package breaks a rule of the Neural Engine, rule by rule and exception by exception.

Keeping to all of them does not prove that a model runs there: only a Mac tells.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from snapgen_pl.export.ane_exceptions import EXCEPTIONS, exception_from
from snapgen_pl.export.ane_rules import RULES, RuleName
from snapgen_pl.export.dataflow import Dataflow
from snapgen_pl.export.package import Package

WORST = 3  # findings that a tally keeps


class Finding(NamedTuple):
    """Something that breaks a rule.

    Attributes:
        rule: its name, a key of :data:`~snapgen_pl.export.ane_rules.RULES`.
        operation: whose doing it is, type and name; the package itself for its weights.
        value: what it is, in words: mostly the type of a value.
        bytes: that it takes; for the last axis, those of its padding.
        exception: that it falls under, a key of :data:`~snapgen_pl.export.ane_exceptions.EXCEPTIONS`; None where it is
            a violation.
    """

    rule: RuleName
    operation: str
    value: str
    bytes: int
    exception: str | None


class Tally(NamedTuple):
    """The findings of one rule that fall under one exception, or under none.

    Attributes:
        rule: its name.
        exception: likewise; None for violations.
        total: how many there are.
        bytes: of all of them.
        operations: how many of each type, the most frequent first.
        worst: those of the most bytes.
    """

    rule: RuleName
    exception: str | None
    total: int
    bytes: int
    operations: dict[str, int]
    worst: tuple[Finding, ...]

    @property
    def reason(self) -> str | None:
        """Why they are excepted."""
        return None if self.exception is None else EXCEPTIONS[self.exception].reason

    def record(self) -> dict[str, object]:
        """For JSON."""
        return {**self._asdict(), "reason": self.reason, "worst": [finding._asdict() for finding in self.worst]}

    @property
    def doers(self) -> str:
        """How many operations of each type it is the doing of."""
        return ", ".join(f"{count} {kind}" for kind, count in self.operations.items())


def findings(package: Package) -> list[Finding]:
    """All that breaks a rule, in the order of operations."""
    return list(_findings(Dataflow(package)))


def tallies(found: Iterable[Finding]) -> tuple[Tally, ...]:
    """Findings by rule and exception: violations first, then in the order of the rules."""
    groups: dict[tuple[RuleName, str | None], list[Finding]] = {}
    for finding in found:
        groups.setdefault((finding.rule, finding.exception), []).append(finding)
    order = list(RULES)
    keys = sorted(groups, key=lambda key: (key[1] is not None, order.index(key[0])))
    return tuple(_tally(*key, groups[key]) for key in keys)


def broken(rules: Iterable[Tally]) -> str:
    """How often each rule is broken, exceptions left out, in words; empty where none is."""
    return ", ".join(f"{tally.total} {tally.rule}" for tally in rules if tally.exception is None)


def _findings(flow: Dataflow) -> Iterator[Finding]:
    for operation in flow.operations:
        for name, rule in RULES.items():
            for value, size in rule(operation, flow):
                yield Finding(name, str(operation), value, size, exception_from(name, operation, flow))


def _tally(rule: RuleName, exception: str | None, found: list[Finding]) -> Tally:
    types = Counter(finding.operation.split()[0] for finding in found)
    worst = sorted(found, key=lambda finding: finding.bytes, reverse=True)[:WORST]
    size = sum(finding.bytes for finding in found)
    return Tally(rule, exception, len(found), size, dict(types.most_common()), tuple(worst))
