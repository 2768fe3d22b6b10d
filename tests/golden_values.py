"""Values that a refactor reproduces; a change of numerics deletes a file, runs its test, and commits it anew, apart."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest

FOLDER = Path(__file__).parent / "golden"


class StepLosses(L.Callback):
    """Keeps each step's loss, and the means of its terms by name."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.terms: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: object) -> None:
        self.losses.append(float(outputs["loss"]))
        self.terms.append({term.name: float(term.value_B.mean()) for term in outputs["terms"].terms})

    def check(self, name: str) -> None:
        """Compares losses, and terms step by step where they are."""
        names = dict.fromkeys(name for terms in self.terms for name in terms)
        check_golden(name, self.losses, {each: [t[each] for t in self.terms if each in t] for each in names})


def check_golden(name: str, losses: Sequence[float], others: Mapping[str, Sequence[float]]) -> None:
    """Compares with ``golden/<name>.json``, not bit for bit: other processors sum in other orders.

    Args:
        name: of the stage.
        losses: step by step.
        others: what is less exact, by name.
    """
    file, found = FOLDER / f"{name}.json", {"losses": losses, **others}
    if not file.exists():
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        pytest.fail(f"{file} was not there; it is now, to be read and committed")
    golden = json.loads(file.read_text(encoding="utf-8"))
    assert found.keys() == golden.keys()
    for key, values in golden.items():
        assert found[key] == pytest.approx(values, rel=1e-4 if key == "losses" else 1e-3), key
