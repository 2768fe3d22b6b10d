"""Asks a teacher once, so that training need not: wiring only."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from snapgen_pl.config_files import Value
from snapgen_pl.data.shards import Plan
from snapgen_pl.data.source import Taught
from snapgen_pl.data.teacher_outputs import FORMAT, output_tensors, rounded
from snapgen_pl.data.teaching_data import SplitBatch, TeachingData
from snapgen_pl.modules.distill import Distill


class EncodeTeacher(Distill):
    """Predicts what the teacher says of each image at its pinned draws, as :class:`Distill` would ask it.

    Configured as the run that will learn from it, for what the student is asked without decides what the teacher is.

    Args:
        dtype: what velocities and features are stored in.
        **distill: as in Distill.

    Attributes:
        folder: what the shards' folder is called.
    """

    folder = "teacher_outputs"

    def __init__(self, dtype: Literal["float16", "float32"] = "float16", **distill: Any) -> None:
        super().__init__(**distill)
        self.dtype_stored = dtype

    def needs_teacher(self, stage: str) -> bool:
        """Always: nothing else is wanted."""
        return True

    def plan(self) -> Plan:
        """What is to be asked; reads the teacher's weights through, for their SHA-256."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, TeachingData):
            raise ValueError(f"EncodeTeacher needs a TeachingData as its data, not {type(data).__name__}")
        if self.teacher.divided and self.trainer.world_size > 1:
            raise ValueError(
                "shards do not come out even among processes, and a teacher whose weights are divided must be asked by "
                "all of them alike; set its placement to replicated, or encode in one process"
            )
        self.setup("predict")
        features: list[Value] = [*self.teacher_features]
        return data.plan(FORMAT, {**self.teacher_facts(), "features": features, "dtype": self.dtype_stored})

    @torch.no_grad()
    def predict_step(self, batch: SplitBatch, batch_idx: int) -> Taught:  # type: ignore[override]  # asks, draws not
        """What the teacher says of a batch, as it will be stored: a shard's batches wait for each other in memory."""
        drawn = self.training_sample if batch.split == "train" else self.validation_sample
        path, condition = drawn(batch.batch)
        return rounded(self.answer(path, self.ask(batch.batch, condition)), self.dtype_stored)

    def shard(self, predictions: Sequence[Taught], positions: range) -> dict[str, Tensor]:
        """The tensors of a shard, of the predictions of its batches, in order."""
        return output_tensors(predictions)
